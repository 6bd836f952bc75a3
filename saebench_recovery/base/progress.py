"""How long work tells what it is doing."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY = 0.5  # seconds between two words that one process sends to another

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


def seldom(progress: Progress) -> Progress:
    """Tells of the work, but not of each of a thousand steps a second."""
    last = -EVERY

    def told(what: str, done: float, total: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY or done == total:
            last = now
            progress(what, done, total)

    return told
