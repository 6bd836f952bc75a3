"""Intervals: ordinary ones without clusters, wider ones with, and nulls over nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t, ttest_1samp

from saebench_recovery.schema import Rate
from saebench_recovery.scoring import paired, statistics
from saebench_recovery.scoring.clusters import totals
from saebench_recovery.scoring.intervals import PRIOR_CLUSTERS, design_effect
from saebench_recovery.scoring.statistics import mean, median_smallest, rate


def width(result: Rate) -> float:
    assert result.low is not None
    assert result.high is not None
    return result.high - result.low


class TestRate:
    @pytest.mark.parametrize("n", [2, 7, 91])
    def test_is_wilson_with_a_t_quantile_when_every_example_stands_alone(self, n: int) -> None:
        """Wilson itself covers a rate of 0.05 in 91 % of samples of 10 (92 % of 20): too few."""
        level = 2 * norm.cdf(t.ppf(0.975, n - 1 + PRIOR_CLUSTERS)) - 1
        for k in range(n + 1):
            expected = binomtest(k, n).proportion_ci(level, method="wilson")
            successes = [i < k for i in range(n)]
            for names in ([str(i) for i in range(n)], [""] * n):
                result = rate(successes, names)
                assert (result.k, result.n, result.rate) == (k, n, k / n)
                assert result.low == pytest.approx(expected.low, abs=1e-12)
                assert result.high == pytest.approx(expected.high, abs=1e-12)

    def test_is_wilson_at_the_variance_of_a_survey_when_clusters_are_many(self) -> None:
        """With 4,000 clusters prior and t vanish, and Rao and Scott's design effect is left."""
        rng = np.random.default_rng(0)
        x = rng.random((4000, 5)) < rng.beta(1, 1, (4000, 1))
        design_effect = x.mean(1).var(ddof=1) / (x.mean() * (1 - x.mean()) / 5)
        result = rate(x.ravel().tolist(), [str(i // 5) for i in range(x.size)])
        half = 1.96 * math.sqrt(x.mean() * (1 - x.mean()) * design_effect / x.size)
        assert width(result) == pytest.approx(2 * half, rel=0.01)

    def test_agreeing_clusters_count_about_once(self) -> None:
        """6 questions in 15 orders each are 6 observations, not 90."""
        names = [str(i // 15) for i in range(90)]
        agree = rate([i // 15 < 4 for i in range(90)], names)
        alone = rate([i // 15 < 4 for i in range(90)], [""] * 90)
        six = rate([i < 4 for i in range(6)], [""] * 6)
        assert agree.rate == alone.rate
        assert width(agree) > 2.5 * width(alone)
        assert width(agree) == pytest.approx(width(six), rel=0.05)

    @pytest.mark.parametrize("outcome", [True, False])
    def test_all_alike_leaves_it_to_the_prior(self, outcome: bool) -> None:
        """A correlation of 0.5 in clusters of 15 is a design effect of 8."""
        names = [str(i // 15) for i in range(90)]
        total, size = totals(np.full(90, float(outcome)), names)
        assert design_effect(total, size) == pytest.approx(8)
        result = rate([outcome] * 90, names)
        assert (result.high if outcome else result.low) == float(outcome)

    def test_one_cluster_bounds_what_markov_does(self) -> None:
        result = rate([True, False, True, True], ["a"] * 4)
        assert (result.low, result.high) == pytest.approx((0.75 / 40, 1 - 0.25 / 40))
        exact = binomtest(1, 1).proportion_ci(0.95, method="exact")
        single = rate([True], [""])
        assert (single.low, single.high) == pytest.approx((exact.low, exact.high))

    def test_never_narrower_than_without_clusters(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(200):
            n = int(rng.integers(1, 40))
            x = [bool(v) for v in rng.random(n) < rng.random()]
            names = [str(v) for v in rng.integers(0, n, n)]
            clustered, alone = rate(x, names), rate(x, [""] * n)
            assert width(clustered) >= width(alone) - 1e-12
            assert clustered.low is not None
            assert clustered.high is not None
            assert clustered.rate is not None
            assert 0 <= clustered.low <= clustered.rate <= clustered.high <= 1

    def test_nothing_is_null_and_lengths_must_agree(self) -> None:
        assert rate([], []) == Rate(k=0, n=0, rate=None, low=None, high=None)
        with pytest.raises(ValueError, match="2 values, but 1 clusters"):
            rate([True, False], ["a"])


class TestMean:
    def test_leaves_out_what_is_undefined(self) -> None:
        result = mean([1.0, None, 3.0, math.nan, 8.0], list("abcde"))
        assert (result.n, result.mean, result.median, result.max) == (3, 4.0, 3.0, 8.0)
        assert result.low is not None
        assert result.high is not None
        assert result.low < 4 < result.high

    def test_nothing_is_null(self) -> None:
        for values in ([], [None, math.nan]):
            result = mean(values, [""] * len(values))
            assert result.n == 0
            assert {result.mean, result.median, result.max, result.low, result.high} == {None}

    def test_a_single_cluster_has_no_interval(self) -> None:
        result = mean([1.0, 2.0], ["a", "a"])
        assert (result.mean, result.low, result.high) == (1.5, None, None)

    def test_agreeing_clusters_widen_the_interval(self) -> None:
        values = [float(i // 10) for i in range(100)]
        alone = mean(values, [""] * 100)
        clustered = mean(values, [str(i // 10) for i in range(100)])
        assert alone.low is not None
        assert clustered.low is not None
        assert clustered.low < alone.low - 0.5
        assert clustered.mean == alone.mean

    def test_is_the_same_every_time(self) -> None:
        values = list(np.random.default_rng(0).normal(size=50))
        assert mean(values, [""] * 50) == mean(values, [""] * 50)

    def test_is_the_t_interval_of_values_that_lie_evenly(self) -> None:
        """Without skewness, and with clusters of one size, on the means of the clusters."""
        for repeats in (1, 4):
            values = [float(i) for i in range(9) for _ in range(repeats)]
            result = mean(values, [str(value) for value in values])
            expected = ttest_1samp(range(9), 0).confidence_interval(0.95)
            assert (result.low, result.high) == pytest.approx((expected.low, expected.high))

    def test_reaches_further_towards_the_longer_tail(self) -> None:
        result = mean([0.0, 0.1, 0.1, 0.2, 0.3, 0.9, 3.0], [""] * 7)
        assert result.mean is not None
        assert result.low is not None
        assert result.high is not None
        assert result.high - result.mean > 1.2 * (result.mean - result.low)

    def test_is_finite_however_unequal_the_clusters(self) -> None:
        result = mean([1.0] + [2.0, 3.0] * 200, ["a"] + ["b"] * 400)
        assert result.low is not None
        assert math.isfinite(result.low)

    def test_lengths_must_agree(self) -> None:
        with pytest.raises(ValueError, match="1 values, but 2 clusters"):
            mean([1.0], ["a", "b"])


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([], None),
        ([None], None),
        ([0.5], 0.5),
        ([0.1, None], 0.1),
        ([0.1, None, None], None),
        ([0.3, 0.1, None], 0.3),
        ([0.4, 0.1, None, 0.2, None], 0.4),
    ],
)
def test_median_smallest_norm_counts_failures_as_infinite(
    norms: list[float | None], expected: float | None
) -> None:
    assert median_smallest(norms) == expected


def test_many_rows_at_once_are_each_row_alone() -> None:
    """Whatever each of them leaves undefined."""
    drawn = np.random.default_rng(0)
    names = [f"{item}" for item in drawn.integers(0, 9, 30)]
    numbers = np.where(drawn.random((40, 30)) < 0.02, np.nan, drawn.lognormal(size=(40, 30)))
    numbers[3], numbers[4] = np.nan, numbers[5]
    verdicts = [[None if np.isnan(x) else bool(x > 1) for x in row] for row in numbers]
    assert statistics.rates(verdicts, names) == [statistics.rate(row, names) for row in verdicts]
    rows = numbers.tolist()
    _alike(statistics.means(rows, names), [statistics.mean(row, names) for row in rows])
    sides: list[Sequence[statistics.Values]] = [verdicts, rows]
    for others in sides:
        own = others[0]
        beside = paired.beside(own, others, names)
        assert beside[3] is None
        alone = [paired.paired(own, row, names) for row in others]
        _alike([one for one in beside if one], [one for one in alone if one])


def _alike(many: Sequence[object], alone: Sequence[object]) -> None:
    """But for the last bits; the fields of either, nulls as NaN."""
    assert len(many) == len(alone)
    for one, other in zip(many, alone, strict=True):
        of_both = [{"method": "", **vars(of)} for of in (one, other)]
        assert of_both[0].pop("method") == of_both[1].pop("method")
        found, expected = (np.array([*of.values()], dtype=float) for of in of_both)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
