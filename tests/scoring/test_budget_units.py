"""Budgets at each position: in spreads of the site, relative to the residual, or as they are."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from saebench_recovery.attacks.unconstrained import Unconstrained
from saebench_recovery.defenses.clamp import Clamp

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.schema import Mean
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


@pytest.mark.parametrize("unit", get_args(BudgetUnit))
def test_a_budget_holds_at_each_position_in_its_unit(unit: BudgetUnit) -> None:
    found, problem = run(0.7, unit)
    row, norm_NP = found.row, Residual.of(problem).norms[SITE]
    spread = torch.tensor(row.spreads[str(SITE)].value)
    unit_NP = {"spread": spread, "relative": norm_NP, "absolute": torch.tensor(1.0)}[unit]
    torch.testing.assert_close(problem.radius[SITE], problem.budget_N[:, None] * unit_NP)

    delta = found.headline()
    assert isinstance(delta, ResidualDelta)
    length_EP, norm_EP = delta.values[SITE].norm(dim=2), norm_NP[:: problem.variants]
    unit_EP = unit_NP.expand_as(norm_NP)[:: problem.variants]
    torch.testing.assert_close(length_EP, 0.7 * unit_EP, rtol=1e-4, atol=0)
    assert (row.budget, row.budget_unit) == (0.7, unit)
    assert row.norm.mean == pytest.approx(0.7, rel=1e-4)
    relative = row.measures["relative_norm"]
    assert isinstance(relative, Mean)
    assert relative.mean == pytest.approx(float((length_EP / norm_EP).mean()), rel=1e-4)


@pytest.mark.parametrize("budget", [0.7, 1.0])
def test_the_headline_is_a_point_of_the_curve(budget: float) -> None:
    """Other absolute budgets are shares of it: nothing else says what is much."""
    for unit in get_args(BudgetUnit):
        row = run(budget, unit)[0].row
        others = [budget * share if unit == "absolute" else share for share in CURVE_BUDGETS]
        assert [point.budget for point in row.curve.points] == sorted({*others, budget})


def test_latents_may_be_given_by_index() -> None:
    clamp = Clamp(Clamp.Config(features=(5, 3)))
    clamp.fit(shared_target("gpt2"), TinyTask())
    assert clamp.features == {SITE: (5, 3)}
    assert clamp.scores[SITE].tolist() == [1, 1]
    with pytest.raises(UserError, match=f"no latent {LATENTS} at {SITE}, which has {LATENTS}"):
        Clamp(Clamp.Config(features=(LATENTS,))).fit(shared_target("gpt2"), TinyTask())
