"""What an attribution shows, as lines and cells of text, whatever they are printed in."""

from __future__ import annotations

from collections.abc import Iterator

from saebench_recovery.results.report.numbers import estimate
from saebench_recovery.schema import Contrast, DeltaEffect, TaskAttribution

TITLES = {
    "clamped": "clamped latents",
    "other": "other latents",
    "residual": "SAE residual",
}
FIGURES = {
    "length": "norm over the delta's",
    "alone": "works alone",
    "without": "works without it",
    "share": "share of the effect",
    "at_full_norm": "alone at the full norm",
    "random_at_full_norm": "... random direction",
    "at_smallest_norm": "alone at the smallest norm",
    "random_at_smallest_norm": "... random direction",
}


def heads(task: TaskAttribution, delta: DeltaEffect) -> list[str]:
    """An empty corner, then the parts of one kind of deltas."""
    titles = {**TITLES, "top": f"of those, top {task.top}"}
    return ["", *(titles[part.part] for part in delta.parts)]


def figures(delta: DeltaEffect) -> Iterator[list[str]]:
    """Figures down, parts across; see `heads`."""
    for name, title in FIGURES.items():
        yield [title, *(estimate(getattr(part, name)) for part in delta.parts)]


def sentence(contrast: Contrast) -> str:
    """Whether two figures of the same flips are told apart, and by how much."""
    said = "told apart" if contrast.told_apart else "not told apart"
    interval = ""
    if contrast.low is not None and contrast.high is not None:
        interval = f" [{contrast.low:+.2f}, {contrast.high:+.2f}]"
    gap = f"{contrast.difference:+.2f}{interval}"
    return f"{contrast.second} less {contrast.first}: {gap}, {said}"
