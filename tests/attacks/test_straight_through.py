"""Straight-through: a defense whose backward pass lies, or is missing, falls as the honest one."""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.confirmed import confirmed
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.attack_and_score import posed
from tests.attacks.setting import attack, flips_under, replayed, searched

WEAK = Clamp.Config(latents=8, multiplier=0.3)


class Negated(Clamp):
    """The clamp, and its gradient's opposite."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        honest_BTD = super().intervene(site, resid_BTD)
        return 2 * honest_BTD.detach() - honest_BTD


class Detached(Clamp):
    """The clamp, and no gradient."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return super().intervene(site, resid_BTD.detach()) + 0.0 * resid_BTD


class Undefended(Clamp):
    """The clamp, but nothing where a gradient is taken."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        honest_BTD = super().intervene(site, resid_BTD)
        return resid_BTD if resid_BTD.requires_grad else honest_BTD


MASKED = (Negated, Detached, Undefended)


def recovered(kind: type[Clamp], through: str) -> Tensor:
    searching = attack("orthogonal", steps=20, through=through)
    setting, flips = flips_under(kind(WEAK), searching, limit=32)
    replay = replayed(setting, flips, searched(setting, flips)[1])
    return replay.recovered_E & replay.within_E


@pytest.mark.parametrize("kind", MASKED)
def test_a_masked_gradient_does_not_protect(kind: type[Clamp]) -> None:
    honest_E, straight_E = recovered(Clamp, "defense"), recovered(kind, "identity")
    assert honest_E.float().mean() > 0.5
    assert straight_E.sum() >= honest_E.sum() - 1
    if kind is not Undefended:
        assert recovered(kind, "defense").sum() < straight_E.sum()


@pytest.mark.parametrize("kind", [Clamp, *MASKED])
def test_values_do_not_change_and_the_gradient_is_that_of_the_identity(kind: type[Clamp]) -> None:
    setting, flips = flips_under(kind(WEAK), attack("orthogonal"))
    problem = posed(setting, flips, Meter())
    delta = problem.space.shrink(problem.random("test"), torch.full_like(problem.budget_N, 0.3))
    assert isinstance(delta, ResidualDelta)
    straight = problem.passing("identity")
    assert torch.equal(straight.objective(delta), problem.objective(delta))
    objective_N, grads = straight.gradient(delta)
    torch.testing.assert_close(objective_N, problem.objective(delta))
    # In front of the identity and behind it the gradient is the same.
    behind, flips = flips_under(kind(WEAK), attack("orthogonal"), threat_model="post")
    _, after = posed(behind, flips, Meter()).gradient(problem.zeros())
    _, before = straight.gradient(problem.zeros())
    for site, gradient in before.items():
        torch.testing.assert_close(gradient, after[site])
        assert (gradient != 0).any()
        assert torch.isfinite(grads[site]).all()


@pytest.mark.parametrize("kind", [Clamp, *MASKED])
def test_differences_give_the_gradient_of_the_honest_defense(kind: type[Clamp]) -> None:
    honest, masked = (problem_under(one) for one in (Clamp, kind))
    delta = honest.space.shrink(honest.random("test"), torch.full_like(honest.budget_N, 0.3))
    assert isinstance(delta, ResidualDelta)
    found_by = confirmed(masked)
    assert (found_by is masked) == (kind is Clamp)
    assert torch.equal(found_by.objective(delta), masked.objective(delta))
    _, wanted = honest.gradient(delta)
    _, found = found_by.gradient(delta)
    for site, gradient in wanted.items():
        alike_N = torch.cosine_similarity(found[site].flatten(1), gradient.flatten(1))
        # A latent may begin to act between the points of a difference.
        assert (alike_N > 0.999).float().mean() >= 0.9


@pytest.mark.parametrize("kind", MASKED)
def test_no_masked_gradient_keeps_the_priced_search_out(kind: type[Clamp]) -> None:
    def broken(kind: type[Clamp], through: str) -> int:
        searching = attack("lagrangian", steps=30, starts=1, through=through)
        setting, flips = flips_under(kind(WEAK), searching, limit=16)
        replay = replayed(setting, flips, searched(setting, flips)[1])
        return int((replay.recovered_E & replay.within_E).sum())

    honest = broken(Clamp, "defense")
    assert honest > 0
    assert broken(kind, "confirmed") >= honest - 1


def problem_under(kind: type[Clamp]) -> Problem:
    setting, flips = flips_under(kind(WEAK), attack("orthogonal"))
    return posed(setting, flips, Meter())


@pytest.mark.parametrize("name", ["clamp", "ablation", "reconstruction", "subspace", "trajectory"])
def test_an_honest_gradient_is_followed(name: str) -> None:
    setting, flips = flips_under(name, attack("orthogonal"), limit=32)
    problem = posed(setting, flips, Meter())
    assert confirmed(problem) is problem
