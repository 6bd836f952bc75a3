"""Two runs on the same flips: the difference of their means, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saebench_recovery.scoring.clusters import Array, totals
from saebench_recovery.scoring.intervals import (
    difference_interval,
    difference_p_value,
    mean_interval,
    mean_p_value,
)

ENUMERATED = 14  # clusters whose 2^14 sign patterns are all tried
LEAST_CLUSTERS = 6  # with m that differ no p-value is below 2^(1 - m), so 5 never reach 0.05
CONVOLVED = 10_000  # largest sum of whole totals of which all values are tabulated
DRAWS = 10_000
SEED = 0  # a p-value is part of the result, so it must not change from run to run
ROUNDING = 1e-9  # sums this close, relative to the largest possible one, are the same sum

Value = bool | float | None


@dataclass(frozen=True)
class Paired:
    """The second run's mean less the first one's, on flips on which both are defined."""

    difference: float
    low: float | None
    high: float | None
    first_larger: int
    second_larger: int
    p_value: float  # two-sided
    method: str
    pairs: int
    clusters: int


def paired(
    first: Sequence[Value], second: Sequence[Value], clusters: Sequence[str]
) -> Paired | None:
    """Compare two runs flip by flip, where what chance may turn round is a whole cluster.

    None and NaN mean "undefined"; None is returned where no flip is defined in both runs. The
    interval is `difference_interval` if all values are right or wrong, and `mean_interval` if they
    are numbers; null if there is one cluster.

    The p-value is that of `sign_flip_test`. Equal means imply that either sign is as likely only
    for single flips that are right or wrong: there it is McNemar's exact test. Otherwise it is the
    larger of that and of the interval's own t test, which holds where the outcomes of one run are
    more alike inside clusters than those of the other; so it is at most 0.05 only if the
    interval leaves out zero.

    By simulation runs with equal rates come out at or below 0.05 in at most 5 % of samples, and
    in at most 7 % if only one of them is correlated in clusters (by 0.5).

    Raises:
        ValueError: not as many values of either run, or cluster names.
    """
    if not len(first) == len(second) == len(clusters):
        raise ValueError(f"{len(first)} and {len(second)} values, but {len(clusters)} clusters")
    gaps = np.array(second, dtype=np.float64) - np.array(first, dtype=np.float64)
    defined = ~np.isnan(gaps)
    gaps = gaps[defined]
    if not len(gaps):
        return None
    total_M, size_M = totals(gaps, [name for name, d in zip(clusters, defined, strict=True) if d])
    binary = all(value is None or isinstance(value, bool) for value in (*first, *second))
    interval = difference_interval if binary else mean_interval
    low = high = None
    if len(size_M) > 1:
        low, high = (float(bound) for bound in interval(total_M, size_M))
    p_value, method = paired_test(total_M, size_M, binary=binary)
    return Paired(
        difference=float(gaps.mean()),
        low=low,
        high=high,
        first_larger=int((gaps < 0).sum()),
        second_larger=int((gaps > 0).sum()),
        p_value=p_value,
        method=method,
        pairs=len(gaps),
        clusters=len(size_M),
    )


def paired_test(total_M: Array, size_M: Array, *, binary: bool) -> tuple[float, str]:
    """p-value of a mean difference of zero from the totals of clusters, and by which test."""
    by_flips, method = sign_flip_test(total_M)
    single = bool((size_M == 1).all())
    if len(size_M) == 1 or (binary and single):
        return by_flips, method
    of = difference_p_value if binary else mean_p_value
    return max(by_flips, float(of(total_M, size_M))), f"{method} and t test"


def sign_flip_test(total_M: Array) -> tuple[float, str]:
    """Two-sided p-value of the sum of differences, if each cluster's total could have either sign.

    A randomisation test (Fisher, "The Design of Experiments", 1935, section 21): exact where
    cluster totals are symmetric about zero under the hypothesis, as they are if the runs are
    exchangeable. On single flips with binary outcomes it is McNemar's exact test, which is the
    sign test. Small whole totals (those of binary outcomes) are convolved and up to 14 others
    enumerated; beyond that signs are drawn from a fixed seed, the observed ones among them.

    With m clusters that differ, no p-value is below 2^(1 - m): 5 clusters never reach 0.05.
    """
    total_M = total_M[total_M != 0]
    if not len(total_M):
        return 1.0, "exact sign flips"
    largest = float(np.abs(total_M).sum())
    if largest <= CONVOLVED and np.array_equal(total_M, np.rint(total_M)):
        return _convolved(total_M.astype(int).tolist()), "exact sign flips"
    if len(total_M) <= ENUMERATED:
        positive_BM = np.arange(2 ** len(total_M))[:, None] >> np.arange(len(total_M)) & 1
    else:
        shape = (DRAWS, len(total_M))
        positive_BM = np.random.default_rng(SEED).integers(0, 2, shape, dtype=np.int8)
    sum_B = 2 * (positive_BM @ total_M) - total_M.sum()
    as_far = int((np.abs(sum_B) >= abs(float(total_M.sum())) - ROUNDING * largest).sum())
    if len(total_M) <= ENUMERATED:
        return as_far / len(sum_B), "exact sign flips"
    return (as_far + 1) / (DRAWS + 1), f"{DRAWS} random sign flips"


def _convolved(total_M: Sequence[int]) -> float:
    """Chance that a sum of whole numbers with random signs is as far from zero as the given one."""
    most = sum(abs(total) for total in total_M)
    chance = np.zeros(2 * most + 1)
    chance[most] = 1.0
    for total in total_M:
        chance = (np.roll(chance, total) + np.roll(chance, -total)) / 2
    distance = np.abs(np.arange(-most, most + 1))
    return min(1.0, float(chance[distance >= abs(sum(total_M))].sum()))
