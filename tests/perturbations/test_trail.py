"""The trail of a search: what each row has cost, and had cost when it got there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from saebench_recovery.attacks._ascent import ascend
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery.model.meter import Meter
from saebench_recovery.model.trail import Trail
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.first_reached import first_reached
from tests.problems import problem_of, tiny_setting


@contextmanager
def searching() -> Iterator[tuple[Problem, Meter]]:
    """A problem and the meter that counts the search, which is open."""
    meter = Meter()
    problem = problem_of(tiny_setting("residual"), meter=meter)
    with meter.counting():
        yield problem, meter


def test_rows_share_what_is_spent() -> None:
    with searching() as (problem, meter):
        problem.gradient(problem.zeros())
        problem.objective(problem.zeros())
    spent_N = problem.spent_N()
    assert (spent_N == spent_N[0]).all()
    assert meter.flops > 0
    torch.testing.assert_close(float(spent_N.sum()), meter.flops)


def test_rows_that_were_dropped_cost_nothing_more() -> None:
    with searching() as (problem, _):
        problem.gradient(problem.zeros())
        once = float(problem.spent_N()[0])
        index = torch.arange(0, problem.size, 2)
        part = problem.rows(index).rows(torch.arange(len(index) // 2))  # of a selection
        part.gradient(part.zeros())
    kept = torch.zeros(problem.size, dtype=torch.bool)
    kept[index[: len(index) // 2]] = True
    assert torch.equal(problem.spent_N() > once, kept)
    assert (part.spent_N() > once).all()


def test_the_first_time_is_kept() -> None:
    trail = Trail(3, "cpu")
    everywhere = torch.arange(3)
    for reached in ([False, True, False], [True, True, False]):
        trail.spend(everywhere, 5.0)
        trail.reach(everywhere, torch.tensor(reached))
    assert trail.first_N.tolist() == [10.0, 5.0, torch.inf]


def test_a_row_that_is_searched_from_two_starts_at_once_pays_for_both() -> None:
    trail, copies = Trail(2, "cpu"), torch.tensor([0, 0, 1])
    trail.spend(copies, 5.0)
    assert trail.spent_N.tolist() == [10.0, 5.0]
    trail.reach(copies, torch.tensor([True, False, False]))
    assert trail.first_N.tolist() == [10.0, torch.inf]


def test_what_no_row_was_booked_for_is_borne_by_the_rows_that_search() -> None:
    with searching() as (problem, meter):
        part = problem.rows(torch.arange(2))
        part.begin()
        before = meter.flops
        part._engine.objective(part.zeros())  # past the door that books
        assert meter.flops > before
        part.objective(part.zeros())
    spent_N = problem.spent_N()
    torch.testing.assert_close(float(spent_N[:2].sum()), meter.flops - before)
    assert not spent_N[2:].any()


def test_what_was_reached_beyond_the_budget_was_not_reached() -> None:
    with searching() as (problem, _):
        problem.trail.kept = []
        zeros, everywhere = problem.zeros(), torch.arange(problem.size)
        _, grads = problem.gradient(zeros)
        long = replace(zeros, values={s: 1e3 * g / g.norm() for s, g in grads.items()})
        problem._engine.reached(torch.ones(problem.size), problem.goal_N, long)
        assert problem.trail.first_N[everywhere].isfinite().all()
        small = replace(problem, budget_N=1e-6 * problem.budget_N)
        found_N = first_reached(small, problem.trail)
        already_N = problem.objective(zeros) > 0
    assert torch.equal(found_N.isfinite(), already_N)
    assert not already_N.all()


@pytest.mark.parametrize("seen", [[1.0, -1.0], [-1.0, 1.0]])
def test_of_a_row_that_was_searched_twice_at_once_either_may_have_reached_it(
    seen: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with searching() as (problem, _):
        copies, trail = torch.tensor([0, 0]), problem.trail
        trail.kept, trail.first_N[0] = [(copies, problem.zeros().rows(copies))], 5.0
        monkeypatch.setattr(Problem, "objective", lambda self, _: torch.tensor(seen))
        assert float(first_reached(problem, trail)[0]) == 5.0


def test_scoring_leaves_no_trail() -> None:
    with searching() as (problem, _):
        problem.counting_on(Meter()).gradient(problem.zeros())
    assert not problem.spent_N().any()


def test_an_allowance_pays_for_as_many_first_steps() -> None:
    with searching() as (problem, _):
        problem.gradient(problem.zeros())
    cost = float(problem.spent_N()[0])
    assert problem.affordable(7) == 7  # without an allowance, the attack's own steps
    assert replace(problem, allowance=12.5 * cost).affordable(7) == 12
    assert replace(problem, allowance=0.1 * cost).affordable(7) == 1


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_an_ascent_spends_its_allowance(share: float) -> None:
    with searching() as (problem, _):
        problem.gradient(problem.zeros())
    allowance = share * 20 * float(problem.spent_N()[0])
    with searching() as (problem, _):
        # A goal that is out of reach, so that none is done before.
        far = replace(problem, allowance=allowance, goal_N=problem.goal_N + 100)
        ascend(far, Orthogonal.Config(steps=20))
    most = float(problem.spent_N().max())
    assert 0.8 * allowance < most < 1.2 * allowance
