"""The progress bar of a run: on standard error, and only where somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saebench_recovery.base.progress import Progress


@contextmanager
def progress_bar(*, wanted: bool) -> Iterator[Progress | None]:
    """A callback that draws, or none where standard error is no terminal."""
    if not (wanted and sys.stderr.isatty()):
        yield None
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        bar = drawn.add_task("starting", total=None)

        def advance(what: str, done: int, total: int) -> None:
            drawn.update(bar, description=what, completed=done, total=total)

        yield advance
