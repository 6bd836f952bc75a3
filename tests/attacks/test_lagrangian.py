"""`lagrangian`: inside the limits by the row's own drift, and no weaker than the null space."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from saebench_recovery.attacks import lagrangian
from saebench_recovery.attacks.lagrangian import SHORTEST, Found, Lagrangian

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.drift import within_limits
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.perturbations.scored_drift import ScoredDrift
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.replay import Replay
from saebench_recovery.spec import Limits
from tests.attacks.setting import attack, flat, flips_under, headline, replayed, searched
from tests.tiny import ARCHITECTURES

DEFENSES = ("clamp", "reconstruction", "multilayer", "ablation")
QUICK = {"steps": 20, "starts": 2}


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES[:2])
def test_what_is_found_is_inside_the_limits_as_the_row_scores_them(
    defense: str, architecture: str
) -> None:
    setting, flips = flips_under(defense, attack("lagrangian", **QUICK), architecture)
    _, found = searched(setting, flips)
    assert replayed(setting, flips, found).within_E.all()
    assert (flat(found).norm(dim=1) > 0).any()


@pytest.mark.parametrize("threat_model", ["reclamp", "post"])
@pytest.mark.parametrize("defense", DEFENSES)
def test_a_share_of_one_is_where_the_rows_verdict_turns(defense: str, threat_model: str) -> None:
    """At random deltas of many sizes, the search's shares and the replay agree on every row."""
    setting, flips = flips_under(
        defense,
        attack("unconstrained", positions="all"),
        threat_model=threat_model,
        limits=Limits(drift=0.2, decode=0.1),
    )
    index = headline(setting, flips)
    problem = posed(setting, flips, Meter()).rows(index)
    drift, verdicts = ScoredDrift.of(problem), []
    for size in (1e-4, 0.01, 0.03, 0.1, 0.3, 1.0):
        delta = problem.space.shrink(
            problem.random("test"), torch.full_like(problem.budget_N, size)
        )
        assert isinstance(delta, ResidualDelta)
        look = drift.look(delta, lambda objective_N, share_NK: objective_N - share_NK.sum(1))
        replay = Replay(setting, [flip.example for flip in flips], delta)
        inside_N = within_limits(replay.drift, setting.spec.limits)
        worst_N = look.share_NK.amax(1)
        clear_N = (worst_N - 1).abs() > 1e-3
        assert torch.equal((worst_N <= 1)[clear_N], inside_N[clear_N])
        torch.testing.assert_close(look.objective_N, replay.objective_E, rtol=1e-3, atol=1e-3)
        assert all(torch.isfinite(g).all() for g in look.gradient.values())
        verdicts += inside_N.tolist()
    assert len(set(verdicts)) == 2


@pytest.mark.parametrize("defense", ["clamp", "reconstruction"])
def test_it_recovers_what_the_null_space_does(defense: str) -> None:
    setting, flips = flips_under(defense, attack("orthogonal", steps=50), limit=32)
    held = replayed(setting, flips, searched(setting, flips)[1])
    free = replace(setting, attack=attack("lagrangian", steps=50))
    priced = replayed(free, flips, searched(free, flips)[1])
    null_space, prices = (int((r.recovered_E & r.within_E).sum()) for r in (held, priced))
    assert prices >= null_space
    assert prices > 0


def test_it_is_deterministic_and_does_not_depend_on_the_batch() -> None:
    setting, flips = flips_under("reconstruction", attack("lagrangian", steps=12, starts=3))
    _, together = searched(setting, flips)
    _, again = searched(setting, flips)
    assert torch.equal(flat(together), flat(again))
    alone = torch.cat([flat(searched(setting, [flip])[1]) for flip in flips])
    # Rounding differs with the batch, and an ascent amplifies it.
    close = (alone - flat(together)).norm(dim=1) <= 0.05 * flat(together).norm(dim=1) + 1e-6
    assert close.float().mean() >= 0.9


def test_an_allowance_is_kept() -> None:
    setting, flips = flips_under("clamp", attack("lagrangian"))
    full, _ = searched(setting, flips)
    allowance = float(full.spent_N().amax()) / 4
    spec = setting.spec.model_copy(update={"flops": allowance})
    less, found = searched(replace(setting, spec=spec), flips)
    assert float(less.spent_N().amax()) <= 1.2 * allowance
    assert flat(found).norm(dim=1).amax() > 0


@pytest.mark.parametrize(("steps", "starts"), [(6, 1), (2 * SHORTEST, 2), (9 * SHORTEST, 4)])
def test_a_smaller_allowance_goes_into_fewer_starts(steps: int, starts: int) -> None:
    found = attack("lagrangian", steps=4, starts=4)
    assert isinstance(found, Lagrangian)
    meter = Meter()
    with meter.counting():
        problem = posed(*flips_under("clamp", found), meter)
        drift, before = ScoredDrift.of(problem), float(problem.spent_N().amax())
        drift.look(problem.zeros(), lambda objective_N, share_NK: objective_N)
        spent = float(problem.spent_N().amax())
        # Two more for what it looks at first.
        paid = replace(problem, allowance=spent + (steps + 2) * (spent - before))
        of_all, of_each = found._afforded(ScoredDrift.of(paid))
    assert of_all == starts
    assert steps - starts < of_all * of_each <= steps + 2


def test_where_a_step_costs_nothing_an_allowance_pays_for_all() -> None:
    """As with a read-out that is pooled at the perturbed site; here nothing is counted."""
    found = attack("lagrangian", steps=4, starts=2)
    assert isinstance(found, Lagrangian)
    problem, _ = searched(*flips_under("clamp", found))
    assert found._afforded(ScoredDrift.of(replace(problem, allowance=1e7))) == (2, 4)


def test_prices_start_over_for_each_start_and_later_starts_only_help() -> None:
    """Of a task whose margin decides."""
    setting, flips = flips_under("reconstruction", attack("lagrangian", steps=12, starts=1))
    more = replace(setting, attack=attack("lagrangian", steps=12, starts=3))
    problem, once = searched(setting, flips)
    _, thrice = searched(more, flips)
    assert (problem.objective(thrice) >= problem.objective(once) - 1e-4).all()


def test_starts_abreast_find_what_they_find_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a goal beyond reach no start ends another; each row pays for all of its own."""
    setting, flips = flips_under(
        "reconstruction", attack("lagrangian", steps=12, starts=6, margin=100.0)
    )
    problem, abreast = searched(setting, flips)
    monkeypatch.setattr(lagrangian, "_rounds", lambda starts, _: [[n] for n in range(starts)])
    single, in_turn = searched(setting, flips)
    gap_N = (flat(abreast) - flat(in_turn)).norm(dim=1)
    # Rounding differs with the batch, and an ascent amplifies it.
    assert (gap_N <= 0.05 * flat(in_turn).norm(dim=1) + 1e-6).float().mean() >= 0.9
    torch.testing.assert_close(problem.spent_N(), single.spent_N(), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("starts", "climbs", "rounds"),
    [
        (1, 1, [[0]]),
        (2, 2, [[0], [1]]),
        (3, 5, [[0], [1, 2], [3], [4]]),
        (7, 7, [[0], [1, 2], [3, 4, 5], [6]]),
    ],
)
def test_the_first_start_is_alone_those_of_a_round_are_abreast_and_refinements_come_last(
    starts: int, climbs: int, rounds: list[list[int]]
) -> None:
    assert [list(abreast) for abreast in lagrangian._rounds(starts, climbs)] == rounds


def test_refinements_go_on_from_the_best_and_only_help() -> None:
    setting, flips = flips_under("reconstruction", attack("lagrangian", steps=12, starts=2))
    problem, rough = searched(setting, flips)
    refining = attack("lagrangian", steps=12, starts=2, refinements=2)
    assert isinstance(refining, Lagrangian)
    assert [refining._first_step(n) for n in (2, 3, 4)] == pytest.approx([0.025, 0.005, 0.025])
    found = Found.of(problem, margin=1.0)
    assert refining._start(problem, 2, found) is found.delta
    _, fine = searched(replace(setting, attack=refining), flips)
    gain_N = problem.objective(fine) - problem.objective(rough)
    assert (gain_N >= -1e-4).all()
    assert (gain_N > 1e-4).any()


def found_for(copies: int) -> tuple[Problem, Found, Found, torch.Tensor]:
    """What is found for a problem, and for copies of its rows 0 and 2, no two of them alike."""
    problem, _ = searched(*flips_under("clamp", attack("lagrangian", steps=1, starts=1)))
    found, rows = Found.of(problem, margin=1.0), torch.tensor([0, 2])
    tried = found.copies(rows, copies)
    number = torch.arange(2.0 * copies)[:, None, None]
    values = {site: value + number for site, value in tried.delta.values.items()}
    tried.delta = replace(tried.delta, values=values)
    return problem, found, tried, rows


def copy_of(found: Found, row: int) -> float:
    """Which copy's delta is kept for a row."""
    (values,) = found.delta.values.values()
    return float(values[row].mean())


def test_of_starts_abreast_the_best_is_kept_and_one_at_its_goal_ends_the_others() -> None:
    problem, found, tried, rows = found_for(copies=2)
    goal = float(found.goal_N[2])
    tried.objective_N = torch.tensor([-2.0, -1.0, goal, goal - 1])
    assert tried.unmet(torch.arange(4)).tolist() == [True, True, False, False]
    text = replace(tried, by_text=True)  # whether that goal was enough is not known yet
    assert text.unmet(torch.arange(4)).tolist() == [True, True, False, True]
    found.objective_N[0] = -1.5
    found.take(tried, rows, tried.done(problem))
    assert found.objective_N[rows].tolist() == pytest.approx([-1.0, goal])
    assert [copy_of(found, row) for row in (0, 2)] == [1, 2]
    assert found.wanted_N.tolist() == [n != 2 for n in range(problem.size)]
    found.objective_N[0] = 5.0  # better than any copy: it stays
    found.take(tried, rows, tried.done(problem))
    assert float(found.objective_N[0]) == 5.0


def test_a_flip_whose_margin_stays_low_is_tried_again() -> None:
    """A margin far below zero after a start ends nothing."""
    problem, found, tried, rows = found_for(copies=1)
    tried.objective_N = torch.full_like(tried.goal_N, -100.0)
    found.take(tried, rows, tried.done(problem))
    assert found.wanted_N.all()


def test_what_a_model_writes_decides_what_is_kept_and_whether_another_start_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A margin is that of the clean answer's tokens, and the text may yet be another."""
    asked: list[int] = []

    def shown(self: Problem, delta: ResidualDelta) -> torch.Tensor:
        asked.append(self.size)
        return torch.arange(self.size) == 1

    monkeypatch.setattr(Problem, "generates", True)
    monkeypatch.setattr(Problem, "behaviour", shown)
    _, found, tried, rows = found_for(copies=2)
    part = posed(*flips_under("clamp", attack("lagrangian")), Meter()).rows(torch.arange(4))
    asked.clear()  # of the search that made them
    goal = float(found.goal_N[0])
    tried.objective_N = torch.tensor([goal, goal / 2, goal, -torch.inf])
    found.take(tried, rows, tried.done(part))
    assert asked == [3]  # a copy without an allowed delta is not asked
    assert copy_of(found, 0) == 1  # its text shows the behaviour, that of the better margin not
    assert not found.wanted_N[0]
    assert copy_of(found, 2) == 2
    assert found.wanted_N[2]
    assert found.objective_N[2].isneginf()  # whatever is allowed takes its place


def test_under_an_allowance_the_margin_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = searched(*flips_under("clamp", attack("lagrangian", steps=1, starts=1)))
    monkeypatch.setattr(Problem, "generates", True)
    assert Found.of(problem, margin=1.0).by_text
    paid = replace(problem, allowance=1e9)
    found = Found.of(paid, margin=1.0)
    found.objective_N = found.goal_N.clone()
    assert found.done(paid).all()


def test_each_round_of_starts_takes_steps_of_another_length_from_the_same_kinds_of_points() -> None:
    found = attack("lagrangian", lr=0.4, starts=10)
    assert isinstance(found, Lagrangian)
    assert [found._first_step(number) for number in range(10)] == pytest.approx(
        [0.2, 0.4, 0.2, 0.05, 0.1, 0.05, 0.025, 0.05, 0.025, 0.2]
    )
    setting, flips = flips_under("clamp", found)
    problem, _ = searched(setting, flips)
    space = replace(Residual.of(problem), constrained=True)
    nothing = Found.of(problem, margin=1.0)
    for number in (0, 3):
        assert flat(found._start(problem, number, nothing)).norm() == 0
    for number, held in ((1, True), (2, False), (4, True), (5, False)):
        begin = found._start(problem, number, nothing)
        projected = space.project(begin, problem.budget_N)
        assert torch.allclose(flat(projected), flat(begin), atol=1e-4) == held
