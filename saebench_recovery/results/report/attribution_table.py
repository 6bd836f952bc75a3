"""An attribution as tables: per task, one for each kind of deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from saebench_recovery.results.report.attribution_lines import (
    PLACE_HEADS,
    contrast_line,
    held_line,
    part_heads,
    part_rows,
    place_rows,
    task_line,
)
from saebench_recovery.results.report.escape import terminal
from saebench_recovery.schema import Attribution


def print_attribution(found: Attribution) -> None:
    """Print every task's tables, each under its verdict."""
    console = Console()
    for task in found.tasks:
        name, line = task_line(task)
        console.print(f"[bold]{terminal(name)}[/bold]{terminal(line)}", highlight=False)
        for delta in task.deltas:
            console.print(delta.verdict, highlight=False)
            console.print(_table(part_heads(task, delta), part_rows(delta)))
            if held := held_line(delta):
                console.print(held, highlight=False)
        for contrast in task.contrasts:
            console.print(contrast_line(contrast), highlight=False)
        if len(task.places) > 1:
            console.print(_table(PLACE_HEADS, place_rows(task)))
    for line in found.skipped:
        console.print(f"[bold]left out:[/bold] {terminal(line)}", highlight=False)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*heads, box=SIMPLE)
    for row in rows:
        table.add_row(*map(terminal, row))
    return table
