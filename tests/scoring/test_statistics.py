"""Intervals: ordinary ones without clusters, wider ones with, and nulls over nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from saebench_recovery.schema import Rate
from saebench_recovery.scoring.statistics import effective_size, mean, median_smallest, rate


def width(result: Rate) -> float:
    assert result.low is not None
    assert result.high is not None
    return result.high - result.low


class TestRate:
    @pytest.mark.parametrize("n", [1, 2, 7, 91])
    def test_is_wilson_when_every_example_stands_alone(self, n: int) -> None:
        for k in range(n + 1):
            expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
            successes = [i < k for i in range(n)]
            for names in ([str(i) for i in range(n)], [""] * n):
                result = rate(successes, names)
                assert (result.k, result.n, result.rate) == (k, n, k / n)
                assert result.low == pytest.approx(expected.low, abs=1e-12)
                assert result.high == pytest.approx(expected.high, abs=1e-12)

    def test_agreeing_clusters_count_once(self) -> None:
        """6 questions in 15 orders each are 6 observations, not 90."""
        names = [str(i // 15) for i in range(90)]
        agree = rate([i // 15 < 4 for i in range(90)], names)
        alone = rate([i // 15 < 4 for i in range(90)], [""] * 90)
        assert agree.rate == alone.rate
        assert width(agree) > 2.5 * width(alone)
        # m / (m - 1) corrects for the mean being estimated: 5, not 6 independent clusters.
        successes = np.array([i // 15 < 4 for i in range(90)], dtype=float)
        assert effective_size(successes, names) == pytest.approx(5)

    @pytest.mark.parametrize("outcome", [True, False])
    def test_all_alike_falls_back_to_one_count_per_cluster(self, outcome: bool) -> None:
        result = rate([outcome] * 90, [str(i // 15) for i in range(90)])
        assert width(result) == pytest.approx(width(rate([outcome] * 6, [""] * 6)))
        assert (result.high if outcome else result.low) == float(outcome)

    def test_one_cluster_is_one_observation(self) -> None:
        assert effective_size(np.array([1.0, 0.0, 1.0]), ["a"] * 3) == 1

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

    def test_covers_the_truth_under_clustering(self) -> None:
        """Beta-binomial clusters of 6 with correlation 0.3: Wilson alone covers about 80 %."""
        rng = np.random.default_rng(0)
        truth, correlation, m, size = 0.3, 0.3, 30, 6
        spread = 1 / correlation - 1
        names = [str(i // size) for i in range(m * size)]
        hits = {"clustered": 0, "alone": 0}
        for _ in range(400):
            p_M = rng.beta(truth * spread, (1 - truth) * spread, m)
            x = [bool(v) for v in rng.random(m * size) < np.repeat(p_M, size)]
            for kind, clusters in (("clustered", names), ("alone", [""] * len(x))):
                result = rate(x, clusters)
                assert result.low is not None
                assert result.high is not None
                hits[kind] += result.low <= truth <= result.high
        assert hits["clustered"] / 400 > 0.91
        assert hits["alone"] / 400 < 0.88

    def test_nothing_is_null_and_lengths_must_agree(self) -> None:
        assert rate([], []) == Rate(k=0, n=0, rate=None, low=None, high=None)
        with pytest.raises(ValueError, match="2 examples, but 1 clusters"):
            rate([True, False], ["a"])


class TestMean:
    def test_leaves_out_what_is_undefined(self) -> None:
        result = mean([1.0, None, 3.0, math.nan, 8.0], list("abcde"))
        assert (result.n, result.mean, result.median, result.max) == (3, 4.0, 3.0, 8.0)
        assert result.low is not None
        assert result.high is not None
        assert 1 <= result.low < 4 < result.high <= 8

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

    def test_covers_the_truth(self) -> None:
        rng = np.random.default_rng(0)
        hits = 0
        for _ in range(200):
            result = mean(list(rng.normal(2.0, 1.0, 40)), [""] * 40)
            assert result.low is not None
            assert result.high is not None
            hits += result.low <= 2.0 <= result.high
        assert hits / 200 > 0.9

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
