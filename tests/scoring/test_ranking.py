"""Ranks tie what was not separated, and never go against the estimates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from saebench_recovery.scoring.power import flips_to_separate
from saebench_recovery.scoring.ranking import holm, ranks
from saebench_recovery.scoring.statistics import Spread, spread

P = st.floats(0, 1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(P, max_size=12))
def test_holm_is_at_least_the_p_value_and_keeps_its_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= min(1, len(adjusted) * p) for p, q in zip(p_values, adjusted, strict=True))
    by_p = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)


def test_only_what_separates_is_ranked_apart() -> None:
    estimates = {"a": 0.1, "b": 0.2, "c": 0.6, "d": 0.7}
    apart = dict.fromkeys([("a", "c"), ("d", "a"), ("b", "c"), ("b", "d")], 0.01)
    assert ranks(estimates, apart) == {"a": 1, "b": 1, "c": 3, "d": 3}
    assert set(ranks(estimates, {}).values()) == {1}


def test_a_sharper_measurement_costs_no_rank() -> None:
    """`b` is separated from `a`; `c`, which is worse and was measured on fewer flips, is not."""
    assert ranks({"a": 0.1, "b": 0.3, "c": 0.4}, {("a", "b"): 0.01, ("a", "c"): 0.2}) == {
        "a": 1,
        "b": 1,
        "c": 1,
    }


@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.data())
def test_ranks_follow_the_estimates(values: list[int], data: st.DataObject) -> None:
    estimates = {str(i): value / 5 for i, value in enumerate(values)}
    pairs = list(itertools.combinations(estimates, 2))
    found = ranks(estimates, {pair: data.draw(st.sampled_from([0.01, 0.2])) for pair in pairs})
    assert min(found.values()) == 1
    for a, b in itertools.permutations(estimates, 2):
        if estimates[a] <= estimates[b]:
            assert found[a] <= found[b]
        if estimates[a] == estimates[b]:
            assert found[a] == found[b]
    for a, rank in found.items():
        assert rank <= 1 + sum(estimates[b] < estimates[a] for b in estimates)


def test_so_many_flips_have_the_power() -> None:
    """Of the pooled test of two proportions, over all pairs of counts that may come up."""
    n = flips_to_separate(0.6, 0.7)
    assert n is not None
    assert flips_to_separate(0.7, 0.6) == n
    count = np.arange(n + 1)
    gap = (count[:, None] - count) / n
    middle = (count[:, None] + count) / (2 * n)
    differs = gap**2 > norm.ppf(0.975) ** 2 * 2 * middle * (1 - middle) / n
    chance = binom.pmf(count, n, 0.6)[:, None] * binom.pmf(count, n, 0.7)
    assert float(chance[differs].sum()) == pytest.approx(0.8, abs=0.01)


def test_clusters_multiply_the_flips_and_equal_rates_never_separate() -> None:
    alone, clustered = flips_to_separate(0.2, 0.9), flips_to_separate(0.2, 0.9, 3)
    assert alone is not None
    assert clustered == pytest.approx(3 * alone, abs=3)
    assert flips_to_separate(0.5, 0.5) is None
    with pytest.raises(ValueError, match="0 to 1"):
        flips_to_separate(0.5, 1.5)


def test_spread_over_seeds() -> None:
    found = spread([0.5, 0.1, 0.3])
    assert found is not None
    assert (found.smallest, found.largest) == (0.1, 0.5)
    assert found.deviation == pytest.approx(0.2)
    assert spread([0.5]) == Spread(0.5, 0.5, None)
    assert spread([]) is None
