"""Rules 13 and 14: what a search is shown is what scoring finds, whatever was checked before."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from random import Random
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp
from saebench_recovery.defenses.multilayer import Multilayer
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense, ResidualDelta, Task
from saebench_recovery.model import meter
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring import replay as replaying
from saebench_recovery.targets.target import Target
from tests.soundness.setting import FEW_LATENTS, clamp, orthogonal, run, unconstrained

CHECKED = (4, 12)  # prompts, and points of each, of the check of gradients


def weak(cls: type[Clamp | Multilayer]) -> Defense:
    return cls(cls.Config(**FEW_LATENTS, multiplier=0.3))


def negated(resid_BTD: Tensor) -> Tensor:
    """The same forward, and backward the negative."""
    return 2 * resid_BTD.detach() - resid_BTD


def callers() -> Iterator[str]:
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        yield frame.f_code.co_name


def searching() -> bool:
    return "search" in callers()


class InLargeBatches(Clamp):
    """Its gradient is honest in batches of the sizes that are checked."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        changed = super().intervene(site, resid_BTD)
        return changed if len(resid_BTD) in CHECKED else negated(changed)


class ByTheStack(Clamp):
    """Does nothing in a search, which then believes that it is done."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        changed = super().intervene(site, resid_BTD)
        return resid_BTD + 0 * changed if "search" in callers() else changed


class ByAHook(Clamp):
    """Turns the gradient round where it comes back."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        changed = super().intervene(site, resid_BTD)
        if changed.requires_grad and len(resid_BTD) not in CHECKED:
            changed.register_hook(torch.neg)  # type: ignore[no-untyped-call]
        return changed


def undefended(changed: Tensor, resid_BTD: Tensor, hidden_B: Tensor) -> Tensor:
    """Undefended in the hidden rows."""
    return torch.where(hidden_B[:, None, None], resid_BTD, changed)


class InEverySecondRow(Clamp):
    """Undefended in rows of a search that lie between evenly spread ones."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        changed = super().intervene(site, resid_BTD)
        row_B = torch.arange(len(resid_BTD))
        return undefended(changed, resid_BTD, searching() & (row_B % 2 == 1))


class InAFewRows(Clamp):
    """Undefended in one row of ten."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        changed = super().intervene(site, resid_BTD)
        row_B = torch.arange(len(resid_BTD))
        return undefended(changed, resid_BTD, searching() & (row_B % 10 == 3))


class ButInSomeLooks(Clamp):
    """Undefended in a search but for looks that are drawn as anybody can who knows the seed."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        self.random, self.looks = Random(0), count()

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        changed = super().intervene(site, resid_BTD)
        if not searching() or not {"_objective", "gradient"} & set(callers()):
            return changed
        look = next(self.looks)
        shown = look < 4 or self.random.randint(0, look) < 4
        return changed if shown else resid_BTD + 0 * changed


class ButWhereOneAsks(Clamp):
    """Undefended in passes of a search that read the objective and the drift together."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        changed = super().intervene(site, resid_BTD)
        return resid_BTD + 0 * changed if searching() and "look" in callers() else changed


class Readings(Multilayer):
    """Undefended where a search asks how later latents depend on the delta."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        changed = super().intervene(site, resid_BTD)
        return resid_BTD + 0 * changed if searching() and "_rows" in callers() else changed


@pytest.mark.parametrize("cls", [InLargeBatches, ByTheStack, ByAHook])
def test_another_defense_in_the_search_is_named(cls: type[Clamp]) -> None:
    row = run(weak(cls), unconstrained()).row
    assert ("search-misled", "invalid") in {(flag.name, flag.level) for flag in row.flags}


@pytest.mark.parametrize("cls", [InEverySecondRow, InAFewRows, ButInSomeLooks])
def test_one_that_knows_what_used_to_be_looked_at_is_named(cls: type[Clamp]) -> None:
    # A budget that leaves most rows undone, so that the search goes on for all of its steps.
    row = run(weak(cls), orthogonal(), budget=0.05).row
    assert "search-misled" in row.flag_names


@pytest.mark.parametrize(
    ("cls", "attack"),
    [(ButWhereOneAsks, "lagrangian"), (Readings, "jacobian")],
)
def test_one_in_passes_of_another_kind_is_named(cls: type[Clamp | Multilayer], attack: str) -> None:
    assert "search-misled" in run(weak(cls), short(attack)).row.flag_names


def short(attack: str) -> Attack:
    settings = {"queries": 30} if attack == "query" else {"steps": 15}
    made = registry.create("attack", attack, settings)
    assert isinstance(made, Attack)
    return made


@pytest.mark.parametrize(
    "attack",
    [orthogonal, unconstrained, *(partial(short, a) for a in ("lagrangian", "jacobian", "query"))],
)
def test_an_honest_search_is_not_misled(attack: Callable[[], Attack]) -> None:
    assert "search-misled" not in run(clamp(), attack()).row.flag_names


class OtherCopies(Clamp):
    """Its copies, of which searches get one, do nothing."""

    def __copy__(self) -> Idle:
        return Idle(self.config)


class Idle(Clamp):
    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD


def test_a_defense_has_no_say_in_its_copies() -> None:
    honest, copied = (run(made, orthogonal()).row for made in (clamp(), weak(OtherCopies)))
    assert copied.recovery == honest.recovery
    assert copied.flag_names == honest.flag_names


# --- what judges ----------------------------------------------------------------------------


def test_a_function_that_was_wrapped_before_the_run_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge: Any = replaying
    monkeypatch.setattr(judge, "within_limits", partial(judge.within_limits))
    assert "judge-replaced" in run(clamp(), orthogonal()).row.flag_names


def test_a_function_whose_code_was_replaced_before_the_run_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(drift: Any, limits: Any) -> Any:
        return next(iter(drift.values())).metrics["relative_l2"] >= 0

    judge: Any = replaying
    monkeypatch.setattr(judge.within_limits, "__code__", other.__code__)
    assert "judge-replaced" in run(clamp(), orthogonal()).row.flag_names


class Uncounted(Orthogonal):
    """Closes the meters while it searches."""

    def search(self, problem: Problem) -> ResidualDelta:
        token = meter._open.set(())
        try:
            return super().search(problem)
        finally:
            meter._open.reset(token)


class Recounts(Orthogonal):
    """Writes zero over the meter that it can reach."""

    def search(self, problem: Problem) -> ResidualDelta:
        found = super().search(problem)
        problem._engine.meter.flops = problem._engine.meter.forward = 0
        return found


def test_passes_that_no_meter_counts_are_named() -> None:
    assert "judge-replaced" in run(clamp(), Uncounted(Orthogonal.Config(steps=5))).row.flag_names


def test_the_meter_that_an_attack_can_reach_is_not_the_rows() -> None:
    settings = Orthogonal.Config(steps=5)
    honest, other = (run(clamp(), cls(settings)).row for cls in (Orthogonal, Recounts))
    assert other.compute.attack.flops == honest.compute.attack.flops
    assert other.compute.attack.forward == honest.compute.attack.forward


class RaisesLimits(Orthogonal):
    """Finds the scale of drift that the run goes by among all objects of the process."""

    def search(self, problem: Problem) -> ResidualDelta:
        found = super().search(problem)
        for rule in [one for one in gc.get_objects() if type(one) is DriftRule]:
            assert isinstance(rule.typical, dict)
            rule.typical.update({site: 2 * value for site, value in rule.typical.items()})
        return found


def test_limits_that_an_attack_changes_are_named() -> None:
    attack = RaisesLimits(Orthogonal.Config(steps=5))
    assert "judge-replaced" in run(clamp(), attack).row.flag_names


class NoLatents(Clamp):
    def fit(self, target: Target, task: Task) -> None:
        self.latents = {}


def test_a_defense_without_latents_is_refused_in_one_line() -> None:
    made: Defense = weak(NoLatents)
    with pytest.raises(UserError, match="declares no latents"):
        run(made, orthogonal())
