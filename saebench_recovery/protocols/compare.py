"""Our figures beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from saebench_recovery.protocols.experiment import Experiment, Number
from saebench_recovery.schema import Mean, Rate, Row, RunResult


@dataclass(frozen=True)
class Figure:
    """A share (then with `k` of `n`) or a mean, with its interval where there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None
    k: int | None = None
    n: int | None = None


@dataclass(frozen=True)
class Line:
    measure: str
    ours: Figure | None
    theirs: Figure
    note: str


def compare(result: RunResult, experiment: Experiment) -> list[Line]:
    """Every published number of the run's arm that is about rows of this run.

    None of them where the attack is not one of the published arms.
    """
    arm = experiment.arms.get(result.spec["attack"])
    rows = {row.task: row for row in result.rows}
    return [
        Line(number.measure, _ours(number, rows), theirs(number), number.note)
        for number in (arm.numbers if arm else ())
        if set(number.tasks) <= rows.keys()
    ]


def theirs(number: Number) -> Figure:
    """The published figure; a share gets the Wilson interval that the paper uses."""
    if number.k is None or number.n is None:
        return Figure(number.value, number.low, number.high)
    interval = binomtest(number.k, number.n).proportion_ci(method="wilson")
    return Figure(number.k / number.n, interval.low, interval.high, number.k, number.n)


def _ours(number: Number, rows: Mapping[str, Row]) -> Figure | None:
    """The figure of the one row, or the unweighted mean of several."""
    if number.ours is None:
        return None
    path = number.ours
    figures = [_figure(look_up(rows[task], path)) for task in number.tasks or rows]
    if len(figures) == 1:
        return figures[0]
    values = [figure.value for figure in figures if figure.value is not None]
    return Figure(sum(values) / len(values) if values else None)


def look_up(row: Row, path: str) -> Rate | Mean | float | None:
    """A measure, or what stands at a path such as `drift.readout.l2`; null if not measured."""
    value: Any = row.measures if path in row.measures else row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value  # type: ignore[no-any-return]


def _figure(value: Rate | Mean | float | None) -> Figure:
    if isinstance(value, Rate):
        return Figure(value.rate, value.low, value.high, value.k, value.n)
    if isinstance(value, Mean):
        return Figure(value.mean, value.low, value.high)
    return Figure(value)
