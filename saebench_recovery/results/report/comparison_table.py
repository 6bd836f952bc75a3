"""Comparisons on the terminal: the runs side by side, their paired differences, and verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from saebench_recovery.results.compare import Comparison
from saebench_recovery.results.report.boxed import boxed
from saebench_recovery.results.report.comparison_lines import (
    DIFFERENCE_HEADS,
    differences,
    figures,
    heading,
    remarks,
    run_lines,
)
from saebench_recovery.results.report.escape import terminal


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print every task's comparison; runs go by numbers, which a list explains."""
    console = Console()
    for comparison in comparisons:
        console.print(f"[bold]{terminal(comparison.task)}[/bold]: {heading(comparison)}")
        for line in run_lines(comparison):
            console.print(terminal(line), highlight=False)
        numbers = (str(i + 1) for i in range(len(comparison.runs)))
        console.print(boxed(["", *numbers], figures(comparison)))
        console.print(boxed(DIFFERENCE_HEADS, differences(comparison)))
        for word, line in remarks(comparison):
            console.print(f"[bold]{word}:[/bold] {terminal(line)}", highlight=False)
