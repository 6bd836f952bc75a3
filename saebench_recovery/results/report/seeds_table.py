"""Runs that differ in their seed alone, as a table: how far apart their figures lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from saebench_recovery.results.report.escape import terminal
from saebench_recovery.results.report.headline import title
from saebench_recovery.results.report.numbers import NONE
from saebench_recovery.schema import Mean, Rate, Row, RunResult
from saebench_recovery.scoring import measures
from saebench_recovery.scoring.statistics import spread


def print_seeds(results: Sequence[RunResult]) -> None:
    """Print the spread of the headline measures of each task over the runs' seeds, if several."""
    spec = results[0].spec
    seeds = [str(result.spec["seed"]) for result in results]
    over = f"smallest to largest over seeds {', '.join(seeds)} (standard deviation)"
    terms = f"{spec['threat_model']}, budget {spec['budget']:g} ({spec['budget_unit']})"
    table = Table(
        title=terminal(f"{title(results[0])}, {terms}"),
        caption=over if len(seeds) > 1 else f"seed {seeds[0]}",
    )
    table.add_column("", style="bold")
    by_task: dict[str, list[Row]] = {}
    for row in (row for result in results for row in result.rows):
        by_task.setdefault(row.task, []).append(row)
    for task in by_task:
        table.add_column(terminal(task), justify="right")
    columns = [dict(_headlines(rows)) for rows in by_task.values()]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    Console().print(table)


def _headlines(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    yield "behaviour under attack", _spread([row.under_attack for row in rows])
    for measure in measures.MEASURES:
        if measure.headline:
            yield measure.title, _spread([row.measures[measure.name] for row in rows])


def _spread(values: Sequence[Rate | Mean]) -> str:
    centres = [value.rate if isinstance(value, Rate) else value.mean for value in values]
    found = spread([centre for centre in centres if centre is not None])
    if found is None:
        return NONE
    if len(values) == 1:
        return f"{found.smallest:.2f}"
    deviation = "" if found.deviation is None else f" ({found.deviation:.3f})"
    return f"{found.smallest:.2f} to {found.largest:.2f}{deviation}"
