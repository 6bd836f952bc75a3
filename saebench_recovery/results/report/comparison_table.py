"""Comparisons on the terminal: the runs side by side, their paired differences, and verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from saebench_recovery.base.printable import printable
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

MOST = 100  # runs in a table: nobody reads more columns, and to lay out thousands takes minutes


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print every task's comparison; runs go by numbers, which a list explains.

    Of more than `MOST` runs there are verdicts and no tables.
    """
    console = Console()
    for comparison in comparisons:
        console.print(f"[bold]{terminal(comparison.task)}[/bold]: {heading(comparison)}")
        for line in run_lines(comparison):
            console.out(printable(line), highlight=False)
        if len(comparison.runs) <= MOST:
            _print_tables(console, comparison)
        for word, line in remarks(comparison):
            console.out(word, style="bold", end=": ", highlight=False)
            console.out(printable(line), highlight=False)
        if len(comparison.runs) > MOST:
            console.out(
                f"{len(comparison.runs)} runs are too many to stand side by side: "
                "--json and --markdown have every figure",
                highlight=False,
            )


def _print_tables(console: Console, comparison: Comparison) -> None:
    numbers = (str(i + 1) for i in range(len(comparison.runs)))
    console.print(boxed(["", *numbers], figures(comparison)))
    console.print(boxed(DIFFERENCE_HEADS, differences(comparison)))
