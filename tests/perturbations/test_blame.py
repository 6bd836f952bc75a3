"""NaN in a search is said of the plugin that made it."""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import PluginError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense, Output, ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.targets.target import Target
from tests.soundness.setting import FEW_LATENTS, Zero, clamp, orthogonal, run
from tests.tiny import TinyTask

SMALL = Clamp.Config(**FEW_LATENTS, multiplier=0.3)


class Elsewhere(Clamp):
    """Another thing where an autograd graph reaches it: in a search, and not on a prompt."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        left_BTD = super().intervene(site, resid_BTD)
        return self.elsewhere(left_BTD) if resid_BTD.grad_fn is not None else left_BTD

    def elsewhere(self, left_BTD: Tensor) -> Tensor:
        return left_BTD * torch.nan


class NoSlope(Elsewhere):
    """The right values, and a gradient that is not a number."""

    def elsewhere(self, left_BTD: Tensor) -> Tensor:
        return left_BTD + (left_BTD - left_BTD.detach()).square().sum().sqrt()


class NoMargin(TinyTask):
    """Its margins are not finite where a search differentiates them."""

    def attribution(self, target: Target, site: Site) -> Tensor:
        return TinyTask().attribution(target, site)

    def objective(self, output: Output) -> Tensor:
        margin_E = super().objective(output)
        return margin_E / 0 if output.scores_EC.requires_grad else margin_E


class Lost(Zero):
    """Returns NaN by itself."""

    def search(self, problem: Problem) -> ResidualDelta:
        delta = problem.zeros()
        return delta.__class__({s: v / 0 for s, v in delta.values.items()}, delta.positions_EP)


@pytest.mark.parametrize(
    ("defense", "task", "line"),
    [
        (Elsewhere(SMALL), TinyTask(), "defense 'clamp': intervene returned NaN or infinity"),
        (NoSlope(SMALL), TinyTask(), "defense 'clamp': intervene has a gradient of NaN"),
        (clamp(), NoMargin(), "task 'tiny': objective returned NaN or infinity"),
    ],
)
def test_who_shows_a_search_nan_is_named(defense: Defense, task: TinyTask, line: str) -> None:
    with pytest.raises(PluginError, match=line) as caught:
        run(defense, orthogonal(), task=task)
    assert caught.value.fault == "not-finite"


def test_an_attack_that_makes_nan_itself_is_named() -> None:
    with pytest.raises(UserError, match="attack 'Lost': search: the attack returned NaN"):
        run(clamp(), Lost())
