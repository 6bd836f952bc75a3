"""A sweep over perturbed hook points as a table for each task."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from saebench_recovery.results.report.escape import terminal
from saebench_recovery.results.report.numbers import estimate, number
from saebench_recovery.schema import LayerSweep


def print_layers(sweeps: Iterable[LayerSweep]) -> None:
    """Print every task's hook points, and below them what withstands all."""
    console = Console()
    for sweep in sweeps:
        head = f"{sweep.task}: {sweep.defense} against {sweep.attack}"
        table = Table(
            *("perturbed", "recovery", "injection", "smallest norm", "... that injects"),
            title=terminal(head),
            box=SIMPLE,
        )
        for point in sweep.points:
            table.add_row(
                terminal(point.site),
                estimate(point.recovery),
                estimate(point.wrong_target),
                number(point.median_norm_recovers),
                number(point.median_norm_injects),
            )
        console.print(table)
        console.print(f"withstands all of them: {estimate(sweep.withstands)}", highlight=False)
