"""Rule 1: one detector judges all outputs, and doing nothing scores nothing."""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Output, ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.spec import ThreatModel
from tests.soundness.setting import (
    DEFENSES,
    FEW_LATENTS,
    THREAT_MODELS,
    Zero,
    clamp,
    defense,
    orthogonal,
    run,
    standard,
)
from tests.tiny import TinyTask


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
@pytest.mark.parametrize("name", DEFENSES)
def test_doing_nothing_recovers_nothing(name: str, threat_model: ThreatModel) -> None:
    row = run(defense(name), Zero(), threat_model=threat_model).row
    assert row.examples.valid > 0
    assert row.recovery.k == row.constrained.k == row.base_like.k == 0
    assert row.measures["zero_reactivation"] == row.recovery
    assert row.controls.nothing.k == 0
    assert row.controls.nothing.n == row.recovery.n == row.examples.valid
    assert all(point.recovery.k == 0 for point in row.curve.points)


def test_valid_flips_that_recover_by_themselves_are_flagged() -> None:
    class Forgetful(Clamp):
        """Stops defending when it is told to."""

        defends = True

        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return super().intervene(site, resid_BTD) if self.defends else resid_BTD

    class Disarming(Zero):
        """Knows the defense itself, not the copy that it is handed."""

        def search(self, problem: Problem) -> ResidualDelta:
            forgetful.defends = False
            return super().search(problem)

    forgetful = Forgetful(Clamp.Config(**FEW_LATENTS))
    row = run(forgetful, Disarming()).row
    assert row.controls.nothing.k > 0
    assert {"nothing-recovers", "defense-changed"} <= set(row.flag_names)


def test_one_detector_judges_clean_defended_and_recovered() -> None:
    least = 0.5

    class Strict(TinyTask):
        def behaviour(self, output: Output) -> Tensor:
            return self.objective(output) > least

    scored = run(clamp(), orthogonal(margin=0.5), task=Strict(), limit=None)
    assert scored.row.examples.valid == len(scored.records) > 0
    for line in scored.records:
        assert line.objective_clean > least >= line.objective_defended
        assert line.measures["recovery"] == (line.objective_recovered > least)
    # A detector of the margin's sign would have counted these as flips and as recovered.
    lenient = standard("orthogonal").row.examples
    assert lenient.base > scored.row.examples.base
    assert any(0 < line.objective_recovered <= least for line in scored.records)


def test_a_positive_margin_is_an_argmax() -> None:
    scores_EC = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    output = Output((), scores_EC)
    assert torch.equal(TinyTask().behaviour(output), scores_EC.argmax(1) == 0)
