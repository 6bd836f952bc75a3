"""How far a sweep has come: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saebench_recovery.base.printable import printable
from saebench_recovery.cli.progress import spoken

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from saebench_recovery.runs.sweep.engine import Outcome


class View:
    """Counts cells as they end; `told` is what a cell tells of itself."""

    def __init__(self, total: int, bars: Bars | None) -> None:
        self.total, self.done, self.failed, self.flips = total, 0, 0, 0
        self._said = ""
        self.started = time.monotonic()
        self._bars = bars
        self._cells = bars.add_task(self.line(), total=total) if bars else None
        self._now = bars.add_task("", total=None) if bars else None

    def line(self) -> str:
        """Such as "12 of 48 cells, 1 failed, 960 flips, 3.1 cells a minute, 12 min left"."""
        words = [f"{self.done} of {self.total} cells"]
        if self.failed:
            words.append(f"{self.failed} failed")
        minutes = (time.monotonic() - self.started) / 60
        if self.done and minutes:
            rate = self.done / minutes
            words.append(f"{self.flips:,} flips")
            words += [
                f"{rate:.1f} cells a minute",
                f"{(self.total - self.done) / rate:.0f} min left",
            ]
        return ", ".join(words)

    def line_with_cell(self) -> str:
        """The same, and what a cell that is under way said last."""
        return "; ".join([self.line(), self._said] if self._said else [self.line()])

    def finished(self, outcome: Outcome) -> None:
        self.done, self._said = self.done + 1, ""
        self.failed += outcome.error is not None
        self.flips += outcome.flips
        if self._bars and self._cells is not None:
            self._bars.update(self._cells, completed=self.done, description=self.line())

    def told(self, what: str, done: float, total: float) -> None:
        self._said = printable(what)
        if self._bars and self._now is not None:
            self._bars.update(self._now, description=self._said, completed=done, total=total)


@contextmanager
def live_view(total: int, *, wanted: bool) -> Iterator[View]:
    """The view of so many cells; one that shows nothing unless it is wanted."""
    if not wanted:
        yield View(total, None)
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield View(total, bars)
    else:
        view = View(total, None)
        with spoken(view.line_with_cell):
            yield view
