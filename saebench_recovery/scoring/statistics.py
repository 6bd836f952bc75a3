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
from saebench_recovery.scoring.clusters import totals
from saebench_recovery.scoring.intervals import mean_interval, rate_interval


def rate(successes: Sequence[bool], clusters: Sequence[str]) -> Rate:
    """Share of successes with a 95 % interval (`rate_interval`).

    By simulation it covers rates of 0.05 to 0.95 in at least 93 % of samples with 5 to 50
    clusters of 1 to 40 examples whose own rates follow a beta distribution with a correlation of
    up to 0.5. If 30 % or more of 50 large clusters agree altogether and the others not at all,
    coverage falls to 0.86 at rates of 0.05 and 0.1 (and 0.9 and 0.95).

    A single cluster is one observation: `rate_interval` says what is left of 0 to 1 then.
    """
    x = np.asarray(successes, dtype=np.float64)
    total_M, size_M = totals(x, clusters)
    if len(x) == 0:
        return Rate(k=0, n=0, rate=None, low=None, high=None)
    low, high = rate_interval(total_M, size_M)
    return Rate(k=int(x.sum()), n=len(x), rate=float(x.mean()), low=float(low), high=float(high))


def mean(values: Sequence[float | None], clusters: Sequence[str]) -> Mean:
    """Mean, median and largest value with a 95 % interval of the mean (`mean_interval`).

    None and NaN mean "undefined for this example": they are left out and `n` counts the rest. One
    cluster carries no information about spread, so the interval is then null.

    By simulation it covers in at least 93 % of samples with 5 to 50 clusters for values up to
    exponential ones in skewness; for those with 5 examples that stand alone, in 92 %. For
    log-normal values of sigma 1 coverage falls to 0.89 (5 alone) and 0.91 (10 and 20 clusters).
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values, but {len(clusters)} clusters")
    every = np.array(values, dtype=np.float64)  # None becomes NaN
    defined = ~np.isnan(every)
    x = every[defined]
    if not len(x):
        return Mean(n=0, mean=None, median=None, max=None, low=None, high=None)
    total_M, size_M = totals(x, [name for name, d in zip(clusters, defined, strict=True) if d])
    low = high = None
    if len(size_M) > 1:
        low, high = (float(bound) for bound in mean_interval(total_M, size_M))
    return Mean(
        n=len(x),
        mean=float(x.mean()),
        median=float(np.median(x)),
        max=float(x.max()),
        low=low,
        high=high,
    )


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

    Of two median smallest norms. Where recovery needs no perturbation at all, there is no ratio.
    """
    return injects / recovers if recovers and injects is not None else None


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
