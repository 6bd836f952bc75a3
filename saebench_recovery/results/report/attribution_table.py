"""An attribution as tables: per task, one for each kind of deltas."""

from __future__ import annotations

from rich.console import Console

from saebench_recovery.results.report.attribution_lines import (
    PLACE_HEADS,
    contrast_line,
    held_line,
    part_heads,
    part_rows,
    place_rows,
    task_line,
)
from saebench_recovery.results.report.boxed import boxed
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
            console.print(boxed(part_heads(task, delta), part_rows(delta)))
            if held := held_line(delta):
                console.print(held, highlight=False)
        for contrast in task.contrasts:
            console.print(contrast_line(contrast), highlight=False)
        if len(task.places) > 1:
            console.print(boxed(PLACE_HEADS, place_rows(task)))
    for line in found.skipped:
        console.print(f"[bold]left out:[/bold] {terminal(line)}", highlight=False)
