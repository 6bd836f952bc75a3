"""`query`: no gradient is asked for, and a defense without one falls all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from tests.attacks.setting import attack, flat, flips_under, replayed, searched

WEAK = Clamp.Config(latents=8, multiplier=0.3)


class Stepped(Clamp):
    """The clamp, its output cut off from its input."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return super().intervene(site, resid_BTD.detach())


def test_a_defense_without_a_gradient_falls_where_a_gradient_attack_is_blind() -> None:
    setting, flips = flips_under(Stepped(WEAK), attack("query", queries=150), limit=32)
    problem, found = searched(setting, flips)
    replay = replayed(setting, flips, found)
    assert (replay.recovered_E & replay.within_E).float().mean() > 0.7
    once = problem.random("query 0")
    assert (problem.objective(found) >= problem.objective(once) - 1e-4).all()


def test_it_takes_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    setting, flips = flips_under("clamp", attack("query", queries=10))

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    searched(setting, flips)


def test_it_stays_in_the_constraint_set_on_the_budgets_sphere() -> None:
    setting, flips = flips_under("clamp", attack("query", queries=20))
    problem, found = searched(setting, flips)
    assert replayed(setting, flips, found).tightest_E.amax() < 1e-3
    largest_N = problem.space.norm(found)
    assert largest_N is not None
    torch.testing.assert_close(largest_N, problem.budget_N, rtol=1e-4, atol=0)


def test_it_is_deterministic_and_does_not_depend_on_the_batch() -> None:
    setting, flips = flips_under("clamp", attack("query", queries=30))
    _, together = searched(setting, flips)
    _, again = searched(setting, flips)
    assert torch.equal(flat(together), flat(again))
    alone = torch.cat([flat(searched(setting, [flip])[1]) for flip in flips])
    close = (alone - flat(together)).norm(dim=1) <= 1e-3 * flat(together).norm(dim=1)
    assert close.float().mean() >= 0.95  # a comparison that rounding decides leads elsewhere


def test_an_allowance_is_kept() -> None:
    setting, flips = flips_under("clamp", attack("query", queries=64))
    full, _ = searched(setting, flips)
    allowance = float(full.spent_N().amax()) / 4
    spec = setting.spec.model_copy(update={"flops": allowance})
    less, _ = searched(replace(setting, spec=spec), flips)
    assert float(less.spent_N().amax()) <= 1.05 * allowance
