"""Single figures read off rows, for tables and rankings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt

from saebench_recovery.schema import Mean, Rate, Row


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    centre: float
    low: float
    high: float


def task_of(row: Row) -> str:
    """The row's task, without the target of one that has several, such as `tpp/nurse`."""
    return row.task.partition("/")[0]


def by_task(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each task, one for each of its targets."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(task_of(row), []).append(row)
    return grouped


def interval(value: Rate | Mean) -> Interval | None:
    """A rate or mean with its interval; None where there is nothing to average."""
    centre = value.rate if isinstance(value, Rate) else value.mean
    if centre is None or value.low is None or value.high is None:
        return None
    return Interval(centre, value.low, value.high)


def estimate_columns(name: str, value: Rate | Mean) -> dict[str, float | None]:
    """A rate or mean with the ends of its interval, by the names of three columns."""
    known = interval(value)
    return {
        name: known.centre if known else None,
        f"{name}_low": known.low if known else None,
        f"{name}_high": known.high if known else None,
    }


def over_targets(values: Iterable[Rate | Mean]) -> Interval | None:
    """The mean over a task's targets, each with equal weight; targets with nothing are left out.

    Targets have different examples, so their distances to either end of the interval add up in
    quadrature.
    """
    known = [v for v in map(interval, values) if v is not None]
    if not known:
        return None
    centre = sum(v.centre for v in known) / len(known)
    below, above = (
        sqrt(sum(gap**2 for gap in gaps)) / len(known)
        for gaps in ([v.centre - v.low for v in known], [v.high - v.centre for v in known])
    )
    return Interval(centre, centre - below, centre + above)


def over_rows(rows: Iterable[Row], of: Callable[[Row], Rate | Mean | None]) -> Interval | None:
    """The mean of a figure over a task's rows; those that do not have it are left out."""
    return over_targets(value for value in map(of, rows) if value is not None)


def worst_drift(*rows: Row) -> tuple[float, str] | None:
    """The largest relative drift of any example, and the scope in which it was seen."""
    largest = [
        (drift.relative_l2.max, scope) for row in rows for scope, drift in sorted(row.drift.items())
    ]
    return max(((value, scope) for value, scope in largest if value is not None), default=None)
