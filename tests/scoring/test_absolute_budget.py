"""A headline budget in the residual's own units, beside a curve of relative ones."""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.attacks.unconstrained import Unconstrained
from saebench_recovery.defenses.clamp import Clamp

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.spec import CURVE_BUDGETS, BudgetUnit, RunSpec
from tests.journal import Scored, score
from tests.tiny import LATENTS, SITES, TinyTask, shared_target

SITE = Site.parse(SITES[0])


class Seen(Unconstrained):
    """Keeps the problems that it was handed."""

    def __init__(self) -> None:
        super().__init__(Unconstrained.Config(steps=10, margin=1e6))
        self.problems: list[Problem] = []

    def search(self, problem: Problem) -> ResidualDelta:
        self.problems.append(problem)
        return super().search(problem)


def run(budget: float, unit: BudgetUnit) -> tuple[Scored, Problem]:
    attack = Seen()
    spec = RunSpec(budget=budget, budget_unit=unit, threat_model="post", limit=24)
    clamp = Clamp(Clamp.Config(latents=8, multiplier=0.3))
    return score(shared_target("gpt2"), TinyTask(), clamp, attack, spec), attack.problems[0]


@pytest.mark.parametrize("budget", [0.7, 1.0])  # 1.0 is also a budget of the curve, a relative one
def test_only_the_headline_is_absolute(budget: float) -> None:
    found, problem = run(budget, "absolute")
    count = len(CURVE_BUDGETS) + 1
    budget_EV = problem.budget_N.view(-1, count)
    scale_EV = problem.scale_N.view(-1, count)
    torch.testing.assert_close(budget_EV[:, -1], torch.full_like(budget_EV[:, -1], budget))
    relative_V = torch.tensor(CURVE_BUDGETS)
    torch.testing.assert_close(budget_EV[:, :-1], scale_EV[:, :-1] * relative_V)

    row = found.row
    assert (row.budget, row.budget_unit) == (budget, "absolute")
    assert tuple(point.budget for point in row.curve.points) == CURVE_BUDGETS
    norm_E = found.headline().norm_E()
    assert norm_E is not None
    assert float(norm_E.max()) == pytest.approx(budget, rel=1e-4)  # in the residual's own units
    scale_E = problem.scale_N.view(-1, 2 * count)[:, 0]
    assert row.norm.mean == pytest.approx(float((norm_E / scale_E).mean()), rel=1e-4)


def test_a_relative_headline_is_a_point_of_the_curve() -> None:
    found, _ = run(0.7, "relative")
    budgets = tuple(point.budget for point in found.row.curve.points)
    assert budgets == tuple(sorted((*CURVE_BUDGETS, 0.7)))
    assert (found.row.budget, found.row.budget_unit) == (0.7, "relative")


def test_latents_may_be_given_by_index() -> None:
    clamp = Clamp(Clamp.Config(features=(5, 3, 5)))
    clamp.fit(shared_target("gpt2"), TinyTask())
    assert clamp.features == {SITE: (5, 3)}
    assert clamp.scores[SITE].tolist() == [1, 1]
    with pytest.raises(UserError, match=f"no latent {LATENTS} at {SITE}, which has {LATENTS}"):
        Clamp(Clamp.Config(features=(LATENTS,))).fit(shared_target("gpt2"), TinyTask())
