"""Two runs on the same flips: the difference of their means, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from saebench_recovery.scoring.clusters import Array, by_row, defined_alike, totals
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
    first: Sequence[Value], second: Sequence[Value], clusters: Sequence[str], repeats: int = 1
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

    Where every flip was tried with several seeds, `repeats` is how many; see `statistics.rate`.

    Raises:
        ValueError: not as many values of either run, or cluster names.
    """
    return beside(first, [second], clusters, repeats)[0]


def beside(
    first: Sequence[Value],
    others: Sequence[Sequence[Value]],
    clusters: Sequence[str],
    repeats: int = 1,
) -> list[Paired | None]:
    """Each of several runs compared with the first one, all at once; see `paired`."""
    for other in others:
        if not len(first) == len(other) == len(clusters):
            counts = f"{len(first)} and {len(other)} values"
            raise ValueError(f"{counts}, but {len(clusters)} clusters")
    found: list[Paired | None] = [None] * len(others)
    first_E, first_binary = np.array(first, dtype=np.float64), _binary(first)
    for binary in (False, True):
        chosen = [n for n, one in enumerate(others) if (first_binary and _binary(one)) is binary]
        if not chosen:
            continue
        gap_RE = np.array([others[n] for n in chosen], dtype=np.float64) - first_E
        for numbers, gaps, names in defined_alike(gap_RE, clusters):
            if names:
                compared = _compared(gaps, names, repeats, binary=binary)
                for r, one in zip(numbers, compared, strict=True):
                    found[chosen[r]] = one
    return found


def _binary(values: Sequence[Value]) -> bool:
    return all(value is None or isinstance(value, bool) for value in values)


def _compared(
    gap_RE: Array, clusters: Sequence[str], repeats: int, *, binary: bool
) -> Iterator[Paired]:
    """What gaps that are defined on all of some flips say, row by row."""
    total_RM, size_M = totals(gap_RE, clusters)
    interval = difference_interval if binary else mean_interval
    each = np.atleast_2d(gap_RE)
    ends: Sequence[Sequence[float | None]] = [[None, None]] * len(each)
    if len(size_M) > 1:
        ends = by_row(*interval(total_RM / repeats, size_M / repeats))
    tests = paired_tests(total_RM, size_M, repeats, binary=binary)
    for gap_E, (low, high), (p_value, method) in zip(each, ends, tests, strict=True):
        yield Paired(
            difference=float(gap_E.mean()),
            low=low,
            high=high,
            first_larger=int((gap_E < 0).sum()),
            second_larger=int((gap_E > 0).sum()),
            p_value=p_value,
            method=method,
            pairs=len(gap_E),
            clusters=len(size_M),
        )


def paired_test(total_M: Array, size_M: Array, *, binary: bool) -> tuple[float, str]:
    """p-value of a mean difference of zero from the totals of clusters, and by which test."""
    return paired_tests(total_M, size_M, binary=binary)[0]


def paired_tests(
    total_RM: Array, size_M: Array, repeats: int = 1, *, binary: bool
) -> list[tuple[float, str]]:
    """The same for each of several rows of totals."""
    keys = [total_M.tobytes() for total_M in np.atleast_2d(total_RM)]
    tested = dict(zip(keys, np.atleast_2d(total_RM), strict=True))
    by_flips = {key: sign_flip_test(total_M) for key, total_M in tested.items()}
    every = [by_flips[key] for key in keys]
    single = bool((size_M == 1).all())
    if len(size_M) == 1 or (binary and single):
        return every
    t_test = difference_p_value if binary else mean_p_value
    by_t = by_row(t_test(total_RM / repeats, size_M / repeats))
    pairs = zip(every, by_t, strict=True)
    return [(max(p_value, other), f"{method} and t test") for (p_value, method), [other] in pairs]


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
        positive_BM = _drawn(len(total_M))
    sum_B = 2 * (positive_BM @ total_M) - total_M.sum()
    as_far = int((np.abs(sum_B) >= abs(float(total_M.sum())) - ROUNDING * largest).sum())
    if len(total_M) <= ENUMERATED:
        return as_far / len(sum_B), "exact sign flips"
    return (as_far + 1) / (DRAWS + 1), f"{DRAWS} random sign flips"


@lru_cache(maxsize=16)
def _drawn(clusters: int) -> NDArray[np.int8]:
    """The same random signs for all that have as many clusters."""
    shape = (DRAWS, clusters)
    return np.random.default_rng(SEED).integers(0, 2, shape, dtype=np.int8)


def _convolved(total_M: Sequence[int]) -> float:
    """Chance that a sum of whole numbers with random signs is as far from zero as the given one."""
    most = sum(abs(total) for total in total_M)
    chance = np.zeros(2 * most + 1)
    chance[most] = 1.0
    for total in total_M:
        chance = (np.roll(chance, total) + np.roll(chance, -total)) / 2
    distance = np.abs(np.arange(-most, most + 1))
    return min(1.0, float(chance[distance >= abs(sum(total_M))].sum()))
