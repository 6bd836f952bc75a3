"""Intervals hold 95 % and tests their level, on the hardest designs of `coverage.py`.

Samples are seeded. Bounds leave four standard errors of the simulation, so that another version of
numpy, with another stream, passes too; that they can still tell is tested on recipes that fail.
"""

from __future__ import annotations

import math

import pytest

from tests.scoring.coverage import (
    CLUSTERS,
    Draw,
    Result,
    Sizes,
    alike_runs,
    designs,
    difference_coverage,
    false_positives,
    mean_coverage,
    percentile_bootstrap,
    rate_coverage,
    unlike_runs,
    wilson_z,
)

SAMPLES = 1000
HARD: tuple[Sizes, ...] = ("1", "24", "1 to 40")


def lowest(results: list[Result]) -> float:
    return min(result.share for result in results)


def at_least(coverage: float) -> float:
    return coverage - 4 * math.sqrt(coverage * (1 - coverage) / SAMPLES)


@pytest.mark.parametrize("clusters", CLUSTERS)
class TestCoverage:
    def test_of_rates(self, clusters: int) -> None:
        hard = designs(clusters, HARD, (0.0, 0.5))
        found = list(rate_coverage(hard, (0.05, 0.1, 0.5, 0.95), SAMPLES))
        assert lowest(found) > at_least(0.935)
        before = rate_coverage(hard, (0.05,), SAMPLES, interval=wilson_z)
        assert lowest(list(before)) < at_least(0.935)

    def test_of_means(self, clusters: int) -> None:
        hard = designs(clusters, HARD, (0.0, 0.5))
        assert lowest(list(mean_coverage(hard, ["normal"], SAMPLES))) > at_least(0.94)
        # Long tails: five lone values seldom show them.
        skewed = list(mean_coverage(hard, ["exponential"], SAMPLES))
        assert lowest(skewed) > at_least(0.93 if clusters > 5 else 0.91)
        before = mean_coverage(hard, ["exponential"], SAMPLES, percentile_bootstrap)
        assert lowest(list(before)) < lowest(skewed)

    def test_of_differences(self, clusters: int) -> None:
        hard = designs(clusters, HARD, (0.0, 0.5))
        gaps = [(0.05, 0.05), (0.25, 0.05), (0.5, 0.1)]
        assert lowest(list(difference_coverage(hard, gaps, SAMPLES))) > at_least(0.93)

    @pytest.mark.parametrize("draw", [alike_runs, unlike_runs])
    def test_of_equal_runs_few_are_told_apart(self, clusters: int, draw: Draw) -> None:
        samples = 200
        found = false_positives(
            designs(clusters, ("1", "24"), (0.0, 0.5)), (0.05, 0.5), samples, draw
        )
        most = max(result.share for result in found)
        assert most < 0.07 + 4 * math.sqrt(0.07 * 0.93 / samples)
