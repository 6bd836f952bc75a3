"""An attribution as tables: per task, one for each kind of deltas."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from saebench_recovery.results.report.escape import terminal
from saebench_recovery.results.report.numbers import estimate, number
from saebench_recovery.schema import Attribution, Contrast, DeltaEffect, TaskAttribution

TITLES = {
    "clamped": "clamped latents",
    "other": "other latents",
    "residual": "SAE residual",
}


def print_attribution(found: Attribution) -> None:
    """Print every task's tables, each under its verdict."""
    console = Console()
    for task in found.tasks:
        head = f"[bold]{terminal(task.task)}[/bold]: {task.flips} recovered flips"
        console.print(f"{head}, {terminal(task.attack)}", highlight=False)
        for delta in task.deltas:
            console.print(delta.verdict, highlight=False)
            console.print(_parts(task, delta))
            if delta.later_residual_held.n:
                moved, beside = delta.later_residual_held, delta.later_latents_held
                console.print(
                    f"works with later SAE residuals held {estimate(moved)}, with later latents "
                    f"held {estimate(beside)}",
                    highlight=False,
                )
        for contrast in task.contrasts:
            console.print(_sentence(contrast), highlight=False)
        if len(task.places) > 1:
            console.print(_places(task))
    for line in found.skipped:
        console.print(f"[bold]left out:[/bold] {terminal(line)}", highlight=False)


def _sentence(contrast: Contrast) -> str:
    said = "told apart" if contrast.told_apart else "not told apart"
    interval = ""
    if contrast.low is not None and contrast.high is not None:
        interval = f" [{contrast.low:+.2f}, {contrast.high:+.2f}]"
    gap = f"{contrast.difference:+.2f}{interval}"
    return f"{contrast.second} less {contrast.first}: {gap}, {said}"


def _parts(task: TaskAttribution, delta: DeltaEffect) -> Table:
    """Parts down; what they do across."""
    titles = {**TITLES, "top": f"of those, top {task.top}"}
    table = Table("", *(titles[part.part] for part in delta.parts), box=SIMPLE)

    def row(title: str, of: str) -> None:
        table.add_row(title, *(estimate(getattr(part, of)) for part in delta.parts))

    row("norm over the delta's", "length")
    row("works alone", "alone")
    row("works without it", "without")
    row("share of the effect", "share")
    row("alone at the full norm", "at_full_norm")
    row("... random direction", "random_at_full_norm")
    row("alone at the smallest norm", "at_smallest_norm")
    row("... random direction", "random_at_smallest_norm")
    return table


def _places(task: TaskAttribution) -> Table:
    """Mean norm of each part at every site and position."""
    table = Table("site", "behind readout", "flips", *TITLES.values(), box=SIMPLE)
    for place in task.places:
        lengths = (number(place.lengths[part].mean, ".2f") for part in TITLES)
        table.add_row(place.site, f"{place.behind_readout:d}", str(place.flips), *lengths)
    return table
