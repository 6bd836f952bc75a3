"""Rule 14: false alarms and alarms under attack are of one detector, a function of the residual."""

from __future__ import annotations

import sys

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Task
from saebench_recovery.scoring.check.alarm_function import AlarmCheck
from saebench_recovery.scoring.monitor import KEPT, false_alarms
from saebench_recovery.spec import ThreatModel
from saebench_recovery.targets.target import Target
from tests.journal import Scored
from tests.soundness.setting import (
    FEW_LATENTS,
    SITE,
    clamp,
    evaluation,
    fitted,
    orthogonal,
    run,
    trace_of,
)
from tests.tiny import TinyTask, shared_target

RESIDUALS = 3 * torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))


class Detecting(Clamp):
    """Rings where a residual is longer than `loud`: honest."""

    false_alarms = 0.1
    loud = 0.0

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        self.known: set[float] = set()
        self.counted = False

    def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor:
        said = self.suspicion(resid_BTD)
        self.counted = self.counted or len(resid_BTD) > 8  # as many as the check never shows
        return said

    def suspicion(self, resid_BTD: Tensor) -> Tensor:
        length: Tensor = resid_BTD.norm(dim=-1)
        return length - self.loud


class ByTheStack(Detecting):
    """Silent while false alarms are counted."""

    def suspicion(self, resid_BTD: Tensor) -> Tensor:
        names, frame = set(), sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            names.add(frame.f_code.co_name)
        return torch.full(resid_BTD.shape[:2], -1.0 if "false_alarms" in names else 1.0)


class ByCalls(Detecting):
    """Silent until false alarms were counted, in what is one call here."""

    def suspicion(self, resid_BTD: Tensor) -> Tensor:
        return torch.full(resid_BTD.shape[:2], 1.0 if self.counted else -1.0)


class ByMemory(Detecting):
    """Rings for what it meets again."""

    def suspicion(self, resid_BTD: Tensor) -> Tensor:
        found = {float(x) for x in resid_BTD[..., 0].flatten()}
        again = bool(found & self.known)
        self.known |= found
        return torch.full(resid_BTD.shape[:2], 1.0 if again else -1.0)


class ByAcquaintance(Detecting):
    """Silent on each residual that it met while false alarms were counted, as others do not come.

    Any other it takes for an attack, however near.
    """

    def suspicion(self, resid_BTD: Tensor) -> Tensor:
        keys = [[float(x) for x in row] for row in resid_BTD[..., 0]]
        if not self.counted:
            self.known |= {x for row in keys for x in row}
        new = [[x not in self.known for x in row] for row in keys]
        return torch.tensor(new).float() * 2 - 1


class Batched(Detecting):
    """Centres what it says over the rows beside."""

    def suspicion(self, resid_BTD: Tensor) -> Tensor:
        said = super().suspicion(resid_BTD)
        return said - said.mean(0)


def scored(cls: type[Detecting], threat_model: ThreatModel = "reclamp", **given: float) -> Scored:
    defense = cls(Clamp.Config(**FEW_LATENTS))
    vars(defense).update(given)
    return run(defense, orthogonal(), threat_model=threat_model, limit=16)


FAULTS = {"defense-changed", "stateful-defense", "depends-on-batch"}


@pytest.mark.parametrize("threat_model", ["reclamp", "post"])
@pytest.mark.parametrize("cls", [ByTheStack, ByCalls, ByMemory, ByAcquaintance])
def test_a_detector_of_two_minds_is_named(cls: type[Detecting], threat_model: ThreatModel) -> None:
    row = scored(cls, threat_model).row
    assert FAULTS & {flag.name for flag in row.flags if flag.level == "invalid"}


@pytest.mark.parametrize("threat_model", ["reclamp", "post"])
def test_an_honest_one_is_not(threat_model: ThreatModel) -> None:
    for share in (0.5, 0.9, 0.98):
        resid = _shown(threat_model)
        row = scored(Detecting, threat_model, loud=float(resid.norm(dim=-1).quantile(share))).row
        assert not FAULTS & set(row.flag_names)
        assert row.detection is not None
        assert row.detection.false_alarms.n == 16


def test_what_is_asked_again_cannot_be_known_before() -> None:
    active = fitted(Detecting(Clamp.Config(**FEW_LATENTS)))
    drawn = []
    for _ in range(4):
        found = false_alarms(active, evaluation()[: 2 * KEPT])
        assert found is not None
        drawn.append([float(one.resid[SITE].norm()) for one in found.some])
    assert {len(one) for one in drawn} == {KEPT}
    assert len({tuple(one) for one in drawn}) > 1


@pytest.mark.parametrize(
    ("cls", "names"),
    [(Detecting, []), (ByMemory, ["stateful-defense"]), (Batched, ["depends-on-batch"])],
)
def test_what_the_check_says(cls: type[Detecting], names: list[str]) -> None:
    defense = cls(Clamp.Config(**FEW_LATENTS))
    defense.fit(shared_target("gpt2"), TinyTask())
    check = AlarmCheck(defense, SITE, list(RESIDUALS), entering=True)
    assert [found.name for found in check.findings()] == names
    if not names:
        assert check.afterwards() == []


def test_one_that_returns_another_shape_is_refused() -> None:
    class Pooled(Detecting):
        def suspicion(self, resid_BTD: Tensor) -> Tensor:
            return super().suspicion(resid_BTD).amax(1)

    with pytest.raises(UserError, match=r"alarm must return a tensor \[B, T\]"):
        scored(Pooled)


def _shown(threat_model: ThreatModel) -> Tensor:
    """Content tokens as the detector is shown them."""
    trace = trace_of(fitted(clamp(), threat_model), evaluation()[:16])
    resid = trace.before if threat_model == "reclamp" else trace.after
    return resid[SITE][:, 1:]
