"""Detection: what the detector is shown, and what the row says of it."""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.schema import Row
from saebench_recovery.scoring.monitor import false_alarms, rings
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.spec import RunSpec, ThreatModel
from tests.journal import score
from tests.tiny import BOS, SITES, TinyTask, shared_target

SITE = Site.parse(SITES[0])


class Listening(Clamp):
    """Keeps what it is shown, and rings where a residual is longer than `loud`."""

    false_alarms = 0.1
    loud = float("inf")
    shown: list[tuple[bool, Tensor]]

    def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor:
        self.shown.append((entering, resid_BTD))
        length: Tensor = resid_BTD.norm(dim=-1)
        return length - self.loud


class Forced(TinyTask):
    candidates = ((11, 12), (21, 22))


def listening(threat_model: ThreatModel = "reclamp") -> tuple[Listening, DefendedModel]:
    defense = Listening(Clamp.Config(latents=8))
    defense.shown = []
    defense.fit(shared_target("gpt2"), TinyTask())
    return defense, DefendedModel(shared_target("gpt2"), defense, threat_model)


@pytest.mark.parametrize("task", [TinyTask(), Forced()], ids=type)
@pytest.mark.parametrize("threat_model", ["reclamp", "post"])
def test_it_is_shown_what_enters_the_defense_or_what_leaves(
    threat_model: ThreatModel, task: TinyTask
) -> None:
    defense, active = listening(threat_model)
    laid = batch(task.examples(shared_target("gpt2"), "evaluation")[:5])
    trace = Trace()
    whole_pass(active, task, laid, trace=trace, distribution=False)
    rings(active, laid, trace)
    ((entering, shown),) = defense.shown
    assert entering == (threat_model == "reclamp")
    wanted = trace.before if entering else trace.after
    assert torch.equal(shown, wanted[SITE][:: laid.rows_per_example])
    assert not torch.equal(trace.before[SITE], trace.after[SITE])


def test_bos_and_padding_do_not_ring() -> None:
    defense, active = listening()
    laid = batch(TinyTask().examples(shared_target("gpt2"), "evaluation")[:8])
    trace = Trace()
    whole_pass(active, TinyTask(), laid, trace=trace, distribution=False)
    assert not laid.mask_RQ.all()
    ignored = ~laid.mask_RQ | (laid.ids_RQ == BOS)
    trace.before[SITE][ignored] = 1e6
    defense.loud = 1e5
    found = rings(active, laid, trace)
    assert found is not None
    assert not found.any()
    trace.before[SITE][3, 2] = 1e6
    found = rings(active, laid, trace)
    assert found is not None
    assert found.nonzero()[:, 0].tolist() == [3]


def test_a_defense_without_a_detector_is_not_asked() -> None:
    clamp = Clamp(Clamp.Config(latents=8))
    clamp.fit(shared_target("gpt2"), TinyTask())
    examples = TinyTask().examples(shared_target("gpt2"), "evaluation")
    assert false_alarms(DefendedModel(shared_target("gpt2"), clamp), examples) is None


def test_the_row_says_how_often_it_rang() -> None:
    defense, active = listening()
    examples = TinyTask().examples(shared_target("gpt2"), "evaluation")[:16]
    false_alarms(active, examples)
    ((_, shown),) = defense.shown
    defense.loud = float(shown[:, 1:].norm(dim=-1).quantile(0.98))  # rings for a few prompts
    spec = RunSpec(budget=2.0, budget_unit="relative", limit=16)
    attack = Orthogonal(Orthogonal.Config(steps=8))
    row = score(shared_target("gpt2"), TinyTask(), defense, attack, spec).row
    found = row.detection
    assert found is not None
    assert found.stated == 0.1
    assert found.false_alarms.n == row.examples.n == 16
    assert found.attacked.n == row.examples.valid
    assert found.recovered.n == row.recovery.k > 0
    assert found.recovered.k <= found.attacked.k
    assert found.attacked.rate is not None
    assert found.false_alarms.rate is not None
    assert found.attacked.rate > found.false_alarms.rate
    assert Row.model_validate_json(row.model_dump_json()) == row
