"""How far work has come: a bar on a terminal, elsewhere a line now and then, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from saebench_recovery.base.printable import printable

EVERY = 30.0  # seconds between two lines


class Told:
    """What the work said last of itself; a `Progress`."""

    def __init__(self) -> None:
        self.what, self.share = "starting", 0.0
        self.heard: Callable[[], None] = lambda: None  # called whenever something new is said
        self._started = time.monotonic()
        self._first: float | None = None  # the share with which it began: an interrupted run's

    def __call__(self, what: str, done: float, total: float) -> None:
        self.what, self.share = printable(what), done / total if total else 0.0
        if self._first is None and self.share:
            self._first, self._started = self.share, time.monotonic()
        self.heard()

    def line(self) -> str:
        """Such as "task 2 of 4, ioi: clamp against gcg, 3 of 64 flips; 31 %, 6 % a minute, ..."."""
        words = [self.what]
        minutes = (time.monotonic() - self._started) / 60
        gained = self.share - (self._first or 0.0)
        if gained > 0 and minutes > 0:
            rate = gained / minutes
            words.append(f"{self.share:.0%}, {rate:.1%} a minute, {_left(self.share, rate)} left")
        return "; ".join(words)


def _left(share: float, rate: float) -> str:
    minutes = max(0.0, 1 - share) / rate
    return f"{minutes:.0f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"


@contextmanager
def progress_bar(*, wanted: bool) -> Iterator[Told | None]:
    """What work tells of itself is shown as one bar; nothing is, unless it is wanted."""
    told = Told()
    if not wanted:
        yield None
    elif sys.stderr.isatty():
        with _bar(told):
            yield told
    else:
        with spoken(told.line):
            yield told


@contextmanager
def _bar(told: Told) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(told.line(), total=1)

        told.heard = lambda: bars.update(bar, description=told.line(), completed=told.share)
        yield


@contextmanager
def spoken(line: Callable[[], str]) -> Iterator[None]:
    """A line on standard error every half minute, for logs and pipes."""
    over = Event()

    def speak() -> None:
        while not over.wait(EVERY):
            print(line(), file=sys.stderr, flush=True)

    Thread(target=speak, daemon=True).start()
    try:
        yield
    finally:
        over.set()
