"""An attribution as tables: per task, one for each kind of deltas."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from saebench_recovery.results.report import attribution_lines
from saebench_recovery.results.report.escape import terminal
from saebench_recovery.results.report.numbers import estimate, number
from saebench_recovery.schema import Attribution, DeltaEffect, TaskAttribution


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
            console.print(attribution_lines.sentence(contrast), highlight=False)
        if len(task.places) > 1:
            console.print(_places(task))
    for line in found.skipped:
        console.print(f"[bold]left out:[/bold] {terminal(line)}", highlight=False)


def _parts(task: TaskAttribution, delta: DeltaEffect) -> Table:
    """Parts down; what they do across."""
    table = Table(*attribution_lines.heads(task, delta), box=SIMPLE)
    for line in attribution_lines.figures(delta):
        table.add_row(*line)
    return table


def _places(task: TaskAttribution) -> Table:
    """Mean norm of each part at every site and position."""
    table = Table("site", "behind readout", "flips", *attribution_lines.TITLES.values(), box=SIMPLE)
    for place in task.places:
        lengths = (number(place.lengths[part].mean, ".2f") for part in attribution_lines.TITLES)
        table.add_row(place.site, f"{place.behind_readout:d}", str(place.flips), *lengths)
    return table
