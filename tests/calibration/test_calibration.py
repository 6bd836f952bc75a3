"""Found norms against exact optima: the suite's is close, a weak attack's is not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.calibration.exact import Array, Head, smallest
from tests.calibration.setting import CLAMPS, budgets, optima, posed_for, ratios, smallest_norms
from tests.calibration.table import TARGETS, attack

LIMIT = 24
CASES = [(task, wrong) for task, targets in TARGETS.items() for wrong in targets]


def found(name: str, task: str, *, wrong: bool, **config: object) -> Array:
    searching = attack(name, config)
    budget_E = budgets(posed_for(searching, task, LIMIT)[1])
    best = optima(task, LIMIT, wrong=wrong)
    norm_E = smallest_norms(searching, task, LIMIT, wrong=wrong)
    return ratios(best, norm_E, budget_E)


@pytest.mark.parametrize(("task", "wrong"), CASES)
def test_what_a_row_says_is_near_the_optimum_and_misses_nothing(task: str, wrong: bool) -> None:
    found_N = found("orthogonal", task, wrong=wrong)
    assert len(found_N) > 2
    assert found_N.min() >= 1 - 1e-4  # nothing is shorter than the optimum
    assert np.median(found_N) <= 1.01
    assert found_N.max() <= 1.05


@pytest.mark.parametrize("task", ["ioi", "unlearning"])
def test_a_weak_attack_is_seen_as_weak(task: str) -> None:
    weak = found("query", task, wrong=False, queries=10)
    assert (weak > 1.05).mean() > 0.5  # longer, or missed


@pytest.mark.parametrize("task", list(CLAMPS))
def test_optima_are_verified(task: str) -> None:
    best = optima(task, LIMIT, wrong=False)
    verified = [optimum is not None and optimum.verified for optimum in best]
    assert np.mean(verified) >= 0.95


def test_the_optimum_of_one_flat_rival_is_the_distance_to_its_plane() -> None:
    """Without a bias only the side of a plane counts, and its distance is known."""
    drawn = np.random.default_rng(0)
    head = Head(drawn.normal(size=(2, 8)), np.ones(8), np.zeros(8), 1e-5)
    apart_D = head.weight_VD[0] - head.weight_VD[1]
    apart_D = apart_D - apart_D.mean()
    resid_D = drawn.normal(size=8) - 2 * apart_D
    optimum = smallest(head, resid_D, np.eye(8), 0, [1])
    assert optimum is not None
    assert optimum.verified
    assert optimum.norm == pytest.approx(-apart_D @ resid_D / np.linalg.norm(apart_D), rel=1e-6)
