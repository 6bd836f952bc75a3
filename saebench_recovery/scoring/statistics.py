"""Intervals that know about clusters: examples made from one source item are not independent.

An empty cluster name means that the example stands alone. Every function returns nulls, never
zeros, where there is nothing to count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from saebench_recovery.schema import Mean, Rate

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0  # intervals are part of the result, so they must not change from run to run

Array = NDArray[np.float64]


def rate(successes: Sequence[bool], clusters: Sequence[str]) -> Rate:
    """Share of successes with a 95 % Wilson interval at the effective sample size.

    The Wilson score interval (Wilson 1927) is taken at n / deff, where deff is how much larger
    the variance of the proportion is than that of n independent examples (`effective_size`);
    without repeated clusters it is the ordinary interval.
    """
    x = np.asarray(successes, dtype=np.float64)
    n = len(x)
    if n == 0:
        return Rate(k=0, n=0, rate=None, low=None, high=None)
    p = float(x.mean())
    z2 = float(norm.ppf((1 + CONFIDENCE) / 2)) ** 2 / effective_size(x, clusters)
    centre = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * p * (1 - p) + z2 * z2 / 4) / (1 + z2)
    # Rounding must not move the interval off a rate of exactly 0 or 1.
    low, high = max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))
    return Rate(k=int(x.sum()), n=n, rate=p, low=low, high=high)


def effective_size(successes: Array, clusters: Sequence[str]) -> float:
    """Number of independent examples that would say as much about the proportion.

    With m clusters of n_i examples and x_i successes, the proportion p = sum x / sum n is a
    ratio estimator with variance v = m / (m - 1) * sum (x_i - n_i p)^2 / n^2, and
    deff = v / (p (1 - p) / n): Rao and Scott, "A simple method for the analysis of clustered
    binary data", Biometrics 48 (1992). It is taken as at least 1, as we never claim to know more
    than n examples say.

    With only successes, only failures or a single cluster v says nothing. Then each cluster is
    counted once, as if its members always agreed: that is what was seen, and the worst case.
    """
    index, m = _clusters(clusters, len(successes))
    n = len(successes)
    p = float(successes.mean())
    if m == n:
        return float(n)
    if m == 1 or p in (0.0, 1.0):
        return float(m)
    residual_M = np.bincount(index, weights=successes - p, minlength=m)
    variance = m / (m - 1) * float(residual_M @ residual_M) / n**2
    return n / max(1.0, variance / (p * (1 - p) / n))


def mean(values: Sequence[float | None], clusters: Sequence[str]) -> Mean:
    """Mean, median and largest value with a 95 % percentile bootstrap of the mean.

    Whole clusters are resampled, 2000 times from a fixed seed. None and NaN mean "undefined for
    this example": they are left out and `n` counts the rest. Fewer than two clusters carry no
    information about spread, so the interval is then null.
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values, but {len(clusters)} clusters")
    known = [
        (float(value), cluster)
        for value, cluster in zip(values, clusters, strict=True)
        if value is not None and not math.isnan(value)
    ]
    if not known:
        return Mean(n=0, mean=None, median=None, max=None, low=None, high=None)
    x = np.array([value for value, _ in known])
    index, m = _clusters([cluster for _, cluster in known], len(x))
    low = high = None
    if m > 1:
        total_M = np.bincount(index, weights=x, minlength=m)
        count_M = np.bincount(index, minlength=m)
        times_BM = np.random.default_rng(SEED).multinomial(m, np.full(m, 1 / m), size=RESAMPLES)
        means_B = (times_BM @ total_M) / (times_BM @ count_M)
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(q) for q in np.quantile(means_B, [tail, 1 - tail]))
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


def found_after(flops: float, recovered: bool, reached: float, spent: float) -> bool:
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


def _clusters(names: Sequence[str], n: int) -> tuple[NDArray[np.int64], int]:
    """Cluster index of each example, and how many clusters there are."""
    if len(names) != n:
        raise ValueError(f"{n} examples, but {len(names)} clusters")
    number: dict[str | int, int] = {}
    index = [number.setdefault(name or i, len(number)) for i, name in enumerate(names)]
    return np.array(index, dtype=np.int64), len(number)
