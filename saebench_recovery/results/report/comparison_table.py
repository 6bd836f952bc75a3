"""A comparison as tables: the runs side by side, their paired differences, and what was unequal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from saebench_recovery.results.compare import Comparison
from saebench_recovery.results.paired import PairedDifference
from saebench_recovery.results.report.escape import terminal
from saebench_recovery.results.report.numbers import estimate, number
from saebench_recovery.scoring import measures
from saebench_recovery.scoring.paired import LEAST_CLUSTERS

DRIFT = "drift, relative"


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print every task's comparison; runs go by numbers, which a list explains."""
    console = Console()
    for comparison in comparisons:
        number_of = {run.name: str(i) for i, run in enumerate(comparison.runs, 1)}
        at = "" if comparison.flops is None else f", at {comparison.flops:.2g} FLOPs on each"
        console.print(
            f"[bold]{terminal(comparison.task)}[/bold]: {comparison.flips} flips in common{at}"
        )
        for run in comparison.runs:
            flags = f"; flags: {', '.join(run.flags)}" if run.flags else ""
            line = f"{number_of[run.name]}  {run.name}, run {run.identity}{flags}"
            console.print(terminal(line), highlight=False)
        console.print(_figures(comparison))
        console.print(_differences(comparison.differences, number_of))
        if comparison.clusters < LEAST_CLUSTERS:
            console.print(
                f"[bold]few source items:[/bold] with {comparison.clusters} of them no p-value can "
                "reach 0.05",
                highlight=False,
            )
        for line in comparison.unequal:
            console.print(f"[bold]unequal:[/bold] {terminal(line)}", highlight=False)


def _figures(comparison: Comparison) -> Table:
    """Measures down, runs across."""
    runs = comparison.runs
    table = Table("", *(str(i + 1) for i in range(len(runs))), box=SIMPLE)
    for measure in measures.MEASURES:
        table.add_row(measure.title, *(estimate(run.measures.get(measure.name)) for run in runs))
    table.add_row(DRIFT, *(number(run.drift.mean, ".2g") for run in runs))
    table.add_row("FLOPs on a flip", *(number(run.flops.mean, ".2g") for run in runs))
    return table


def _differences(differences: Sequence[PairedDifference], number_of: Mapping[str, str]) -> Table:
    titles = {measure.name: measure.title for measure in measures.MEASURES} | {"drift": DRIFT}
    table = Table("", "of", "difference", "1 >", "1 <", "p", "by", box=SIMPLE)
    for pair in differences:
        interval = "" if pair.low is None else f" [{pair.low:+.2f}, {pair.high:+.2f}]"
        table.add_row(
            f"{number_of[pair.run]} - 1",
            terminal(titles.get(pair.measure, pair.measure)),
            f"{pair.difference:+.2f}{interval}",
            str(pair.first_larger),
            str(pair.this_larger),
            f"{pair.p_value:.2g}",
            pair.method,
        )
    return table
