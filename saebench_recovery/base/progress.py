"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""Called with what is being done, and how much of how much is done."""


def silent(what: str, done: float, total: float) -> None:
    """For work that nobody is told of."""


def part(progress: Progress, begin: float, end: float, before: str = "") -> Progress:
    """Tells of one part of the work, which is from `begin` to `end` of 1, as of the whole."""

    def told(what: str, done: float, total: float) -> None:
        share = done / total if total else 0.0
        progress(before + what, begin + share * (end - begin), 1)

    return told
