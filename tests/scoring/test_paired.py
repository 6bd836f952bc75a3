"""Paired runs: McNemar without clusters, whole clusters with, and no claim over nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from saebench_recovery.scoring.paired import DRAWS, paired, sign_flip_test

WHOLE = st.lists(st.integers(-24, 24), min_size=1, max_size=9)


def enumerated(totals: list[int]) -> float:
    signs = itertools.product([-1, 1], repeat=len(totals))
    sums = [sum(s * t for s, t in zip(sign, totals, strict=True)) for sign in signs]
    return sum(abs(s) >= abs(sum(totals)) for s in sums) / len(sums)


@given(WHOLE)
def test_sign_flips_are_those_that_can_be_listed(totals: list[int]) -> None:
    expected = enumerated(totals)
    for scale in (1.0, 1e6, 0.37):  # convolved, and enumerated
        p_value, method = sign_flip_test(np.array(totals) * scale)
        assert p_value == pytest.approx(expected)
        assert method == "exact sign flips"


def test_random_flips_agree_with_exact_ones() -> None:
    totals = np.array([3, 1, -1, 4, 2, -2, 1, 5, -3, 1, 2, 1, -1, 2, 6, -4], dtype=float)
    exact, _ = sign_flip_test(totals)
    drawn, method = sign_flip_test(totals * 0.37)
    assert method == f"{DRAWS} random sign flips"
    assert abs(drawn - exact) < 4 * math.sqrt(exact * (1 - exact) / DRAWS) + 2 / DRAWS
    assert sign_flip_test(totals * 0.37) == (drawn, method)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_single_flips_give_mcnemar(rises: int, falls: int, same: int) -> None:
    if rises + falls == 0:
        return
    first = [False] * rises + [True] * falls + [True] * same
    second = [True] * rises + [False] * falls + [True] * same
    found = paired(first, second, [""] * len(first))
    assert found is not None
    assert (found.first_larger, found.second_larger) == (falls, rises)
    assert found.p_value == pytest.approx(binomtest(rises, rises + falls).pvalue)
    assert found.difference == pytest.approx((rises - falls) / len(first))


def test_agreeing_clusters_count_once() -> None:
    """One question in 24 orders is one question: McNemar's test would give 1e-28."""
    names = [str(i // 24) for i in range(96)]
    found = paired([False] * 96, [True] * 96, names)
    assert found is not None
    assert found.p_value >= 2 / 2**4
    assert (found.pairs, found.clusters) == (96, 4)
    assert found.low is not None
    assert found.low < 0.5


@given(st.integers(2, 12), st.integers(1, 8), st.booleans(), st.integers(0, 10_000))
def test_what_separates_also_leaves_out_zero(m: int, size: int, binary: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [str(i // (size + 1)) for i in range(m * (size + 1))]
    shift = rng.random()
    if binary:
        first = [bool(v) for v in rng.random(len(names)) < 0.2]
        second = [bool(v) for v in rng.random(len(names)) < 0.2 + 0.8 * shift]
        found = paired(first, second, names)
    else:
        x, y = rng.exponential(size=(2, len(names)))
        found = paired(list(x), list(y + 3 * shift), names)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.difference <= found.high
    if found.p_value < 0.0499:
        assert found.low > 0 or found.high < 0


def test_runs_that_never_differ_are_not_separated_and_keep_a_width() -> None:
    found = paired([True, False] * 5, [True, False] * 5, [""] * 10)
    assert found is not None
    assert (found.difference, found.p_value) == (0, 1)
    assert found.low is not None
    assert found.low < -0.1


def test_undefined_pairs_are_left_out() -> None:
    found = paired([1.0, None, 2.0, math.nan], [2.0, 1.0, 5.0, 0.0], list("aabb"))
    assert found is not None
    assert (found.pairs, found.clusters, found.difference) == (2, 2, 2.0)
    assert paired([None], [1.0], ["a"]) is None
    assert paired([], [], []) is None
    alone = paired([True, True], [False, False], ["a", "a"])
    assert alone is not None
    assert (alone.low, alone.high, alone.p_value) == (None, None, 1.0)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="1 and 2 values, but 2 clusters"):
        paired([True], [True, False], ["a", "b"])
