"""Rates and means with intervals that hold 95 % with few clusters, and what sums up norms.

Every function returns nulls, never zeros, where there is nothing to count. Coverage, measured by
`python -m tests.scoring.coverage`, is in `docs/statistics.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saebench_recovery.schema import Mean, Rate
from saebench_recovery.scoring.clusters import by_row, defined_alike, totals
from saebench_recovery.scoring.intervals import mean_interval, rate_interval

Values = Sequence[bool | float | None]


def rate(successes: Values, clusters: Sequence[str], repeats: int = 1) -> Rate:
    """Share of successes with a 95 % interval (`rate_interval`).

    None and NaN mean "undefined for this example": they are left out and `n` counts the rest.

    By simulation it covers rates of 0.05 to 0.95 in at least 93 % of samples with 5 to 50
    clusters of 1 to 40 examples whose own rates follow a beta distribution with a correlation of
    up to 0.5. If 30 % or more of 50 large clusters agree altogether and the others not at all,
    coverage falls to 0.86 at rates of 0.05 and 0.1 (and 0.9 and 0.95).

    A single cluster is one observation: `rate_interval` says what is left of 0 to 1 then.

    Where every example was tried with several seeds, `repeats` is how many: the interval is that of
    the examples' own shares, as trying one again says nothing of others.
    """
    return rates([successes], clusters, repeats)[0]


def rates(successes: Sequence[Values], clusters: Sequence[str], repeats: int = 1) -> list[Rate]:
    """The same of several rows over the same examples, all at once."""
    every_RE = np.array(successes, dtype=np.float64)  # None becomes NaN
    found = [Rate(k=0, n=0, rate=None, low=None, high=None)] * len(every_RE)
    for numbers, x_RE, names in defined_alike(every_RE, clusters):
        if not names:
            continue
        total_RM, size_M = totals(x_RE, names)
        low_R, high_R = rate_interval(total_RM / repeats, size_M / repeats)
        columns = by_row(x_RE.sum(-1), x_RE.mean(-1), low_R, high_R)
        for r, (k, share, low, high) in zip(numbers, columns, strict=True):
            found[r] = Rate(k=int(k), n=len(names), rate=share, low=low, high=high)
    return found


def mean(values: Values, clusters: Sequence[str]) -> Mean:
    """Mean, median and largest value with a 95 % interval of the mean (`mean_interval`).

    None and NaN mean "undefined for this example": they are left out and `n` counts the rest. One
    cluster carries no information about spread, so the interval is then null.

    By simulation it covers in at least 93 % of samples with 5 to 50 clusters for values up to
    exponential ones in skewness; for those with 5 examples that stand alone, in 92 %. For
    log-normal values of sigma 1 coverage falls to 0.89 (5 alone) and 0.91 (10 and 20 clusters).
    """
    return means([values], clusters)[0]


def means(values: Sequence[Values], clusters: Sequence[str]) -> list[Mean]:
    """The same of several rows over the same examples, all at once."""
    every_RE = np.array(values, dtype=np.float64)  # None becomes NaN
    found = [Mean(n=0, mean=None, median=None, max=None, low=None, high=None)] * len(every_RE)
    for numbers, x_RE, names in defined_alike(every_RE, clusters):
        if not names:
            continue
        total_RM, size_M = totals(x_RE, names)
        ends: Sequence[Sequence[float | None]] = [[None, None]] * len(numbers)
        if len(size_M) > 1:
            ends = by_row(*mean_interval(total_RM, size_M))
        columns = by_row(x_RE.mean(-1), np.median(x_RE, axis=-1), x_RE.max(-1))
        for r, (centre, middle, largest), (low, high) in zip(numbers, columns, ends, strict=True):
            found[r] = Mean(
                n=len(names), mean=centre, median=middle, max=largest, low=low, high=high
            )
    return found


def median_smallest(norms: Sequence[float | None]) -> float | None:
    """The smallest norm at which at least half of the examples have recovered.

    `norms` holds each example's smallest norm that recovers, None where none does; the result
    is None where fewer than half ever do, or where there are no examples.
    """
    ordered = sorted(math.inf if value is None else value for value in norms)
    if not ordered:
        return None
    middle = ordered[(len(ordered) - 1) // 2]
    return middle if math.isfinite(middle) else None


def found_after(flops: float, *, recovered: bool, reached: float, spent: float) -> bool:
    """Whether a flip recovered, and a search that had spent so much had found as much.

    `reached` is what it had spent when its objective was first reached, infinite if it never was:
    a recovery that the objective does not show (it is judged by a text, say) came at the end.
    """
    return recovered and min(reached, spent) <= flops


def advantage(recovers: float | None, injects: float | None) -> float | None:
    """How much further the way to a wrong answer is than the way back; None if either is unknown.

    Of two median smallest norms. Where recovery needs no perturbation at all, or one so small that
    no float holds the ratio, there is none.
    """
    ratio = injects / recovers if recovers and injects is not None else math.inf
    return ratio if math.isfinite(ratio) else None


@dataclass(frozen=True)
class Spread:
    """How far runs that differ in their seed alone lie apart."""

    smallest: float
    largest: float
    deviation: float | None  # standard deviation (n - 1); None for a single run


def spread(values: Sequence[float]) -> Spread | None:
    """Spread of one figure over seeds; None where there are no values."""
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(min(values), max(values), deviation)
