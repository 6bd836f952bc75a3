"""A sweep over perturbed hook points as a table for each task."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from saebench_recovery.results.report.boxed import boxed
from saebench_recovery.results.report.numbers import estimate, number
from saebench_recovery.schema import LayerSweep

HEADS = ("perturbed", "recovery", "injection", "smallest norm", "... that injects")


def print_layers(sweeps: Iterable[LayerSweep]) -> None:
    """Print every task's hook points, and below them what withstands all."""
    console = Console()
    for sweep in sweeps:
        rows = [
            (
                point.site,
                estimate(point.recovery),
                estimate(point.wrong_target),
                number(point.median_norm_recovers),
                number(point.median_norm_injects),
            )
            for point in sweep.points
        ]
        title = f"{sweep.task}: {sweep.defense} against {sweep.attack}"
        console.print(boxed(HEADS, rows, title))
        console.print(f"withstands all of them: {estimate(sweep.withstands)}", highlight=False)
