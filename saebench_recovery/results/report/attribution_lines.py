"""What an attribution shows, as lines and cells of text, whatever they are printed in."""

from __future__ import annotations

from collections.abc import Iterator

from saebench_recovery.results.report.numbers import estimate, number
from saebench_recovery.schema import Contrast, DeltaEffect, TaskAttribution

TITLES = {
    "clamped": "clamped latents",
    "other": "other latents",
    "residual": "SAE residual",
}
EFFECTS = (
    ("norm over the delta's", "length"),
    ("works alone", "alone"),
    ("works without it", "without"),
    ("share of the effect", "share"),
    ("alone at the full norm", "at_full_norm"),
    ("... random direction", "random_at_full_norm"),
    ("alone at the smallest norm", "at_smallest_norm"),
    ("... random direction", "random_at_smallest_norm"),
)
PLACE_HEADS = ("site", "behind readout", "flips", *TITLES.values(), "works alone", "without it")


def task_line(task: TaskAttribution) -> tuple[str, str]:
    """The task's name, and of how many flips and whose deltas its tables are."""
    return task.task, f": {task.flips} recovered flips, {task.attack}"


def part_heads(task: TaskAttribution, delta: DeltaEffect) -> list[str]:
    """The parts of a kind of deltas."""
    titles = {**TITLES, "top": f"of those, top {task.top}"}
    return ["", *(titles[part.part] for part in delta.parts)]


def part_rows(delta: DeltaEffect) -> Iterator[list[str]]:
    """What each part does; parts go across."""
    for title, of in EFFECTS:
        yield [title, *(estimate(getattr(part, of)) for part in delta.parts)]


def held_line(delta: DeltaEffect) -> str | None:
    """What is left with parts of later sites held; None where there is no later site."""
    if not delta.later_residual_held.n:
        return None
    moved, beside = delta.later_residual_held, delta.later_latents_held
    return (
        f"works with later SAE residuals held {estimate(moved)}, with later latents "
        f"held {estimate(beside)}"
    )


def contrast_line(contrast: Contrast) -> str:
    """Two figures' difference, and whether they are told apart."""
    verdict = "told apart" if contrast.told_apart else "not told apart"
    interval = ""
    if contrast.low is not None and contrast.high is not None:
        interval = f" [{contrast.low:+.2f}, {contrast.high:+.2f}]"
    gap = f"{contrast.difference:+.2f}{interval}"
    return f"{contrast.second} less {contrast.first}: {gap}, {verdict}"


def place_rows(task: TaskAttribution) -> Iterator[list[str]]:
    """Every site and position: mean norm of each part, and what the deltas do without the rest."""
    for place in task.places:
        lengths = (number(place.lengths[part].mean, ".2f") for part in TITLES)
        replays = (estimate(place.alone), estimate(place.without))
        yield [place.site, f"{place.behind_readout:d}", str(place.flips), *lengths, *replays]
