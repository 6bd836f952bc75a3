"""A table on the terminal, whatever its cells are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE
from rich.table import Table

from saebench_recovery.results.report.escape import terminal


def boxed(heads: Iterable[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table in which nothing is markup and no character moves the cursor."""
    table = Table(
        *map(terminal, heads), box=SIMPLE, title=None if title is None else terminal(title)
    )
    for row in rows:
        table.add_row(*map(terminal, row))
    return table
