"""Counts and intervals that no records can give: what a result by itself can be held to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from saebench_recovery.results.mismatch import ROUNDING, Mismatch
from saebench_recovery.schema import Mean, Rate, Row

LEAVES = {str, int, float, bool, type(None)}
# The name of a value inside a row, behind the place of what holds it; none of the row itself.
Place = tuple["Place", Any] | None


def impossible(row: Row) -> Iterator[Mismatch]:
    """Counts and intervals that no records can give."""
    for place, value in _summaries(row):
        wrong = _wrong_rate(value) if isinstance(value, Rate) else _wrong_mean(value)
        if wrong:
            shown = ", ".join(f"{k} {v}" for k, v in value.model_dump().items())
            yield Mismatch(task=row.task, field=_spelled(place), stored=shown, found=wrong)
    counts = row.examples
    if not counts.n >= counts.base >= counts.valid >= counts.learned:
        yield Mismatch(
            task=row.task,
            field="examples",
            stored=str(counts),
            found="more flips than base examples, or more of those than examples",
        )
    if counts.clusters > counts.valid - counts.learned:
        yield Mismatch(
            task=row.task,
            field="examples.clusters",
            stored=str(counts.clusters),
            found=f"{counts.valid - counts.learned} scored flips",
        )


def _summaries(row: Row) -> list[tuple[Place, Rate | Mean]]:
    """Every rate and mean inside a row, with its place."""
    found: list[tuple[Place, Any]] = []
    waiting: list[tuple[Place, Any]] = [(None, row)]
    for holder, value in waiting:  # it grows meanwhile
        kind = type(value)
        if kind is tuple:
            inside: Iterable[tuple[Any, Any]] = enumerate(value)
        else:
            inside = (value if kind is dict else vars(value)).items()
        for name, one in inside:
            kind = type(one)  # `isinstance` takes five times as long, and most values are leaves
            if kind is Rate or kind is Mean:
                found.append(((holder, name), one))
            elif kind not in LEAVES:
                waiting.append(((holder, name), one))
    return found


def _spelled(place: Place) -> str:
    """Such as `curve.points.0.recovery`."""
    names: list[str] = []
    while place is not None:
        place, name = place
        names.insert(0, str(name))
    return ".".join(names)


def _wrong_rate(of: Rate) -> str:
    k, n, rate, low, high = vars(of).values()  # one by one they take three times as long
    if k > n:
        return "more than there are"
    if n == 0:
        return "" if rate is low is high is None else "a rate of nothing"
    if rate is None or abs(rate - k / n) > ROUNDING:
        return f"a rate of {k / n:g}"
    ordered = low is not None and high is not None and low <= rate <= high
    return "" if ordered else "an interval that leaves out the rate"


def _wrong_mean(of: Mean) -> str:
    n, mean, middle, largest, low, high = vars(of).values()
    if n == 0:
        return "" if mean is middle is largest is low is high is None else "a mean of nothing"
    if mean is None or middle is None or largest is None:
        return f"{n} values without a mean"
    slack = ROUNDING * abs(largest)
    if mean > largest + slack or middle > largest + slack:
        return "a largest value below the mean or the median"
    if low is high is None:
        return ""
    ordered = low is not None and high is not None and low - slack <= mean <= high + slack
    return "" if ordered else "an interval that leaves out the mean"
