"""Each monitor: its promise on new prompts, and what it is there to see."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor
from torch.nn.functional import normalize

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import PluginError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.monitors.calibration import DETECTORS, MonitorName
from saebench_recovery.monitors.detector import Undisturbed
from saebench_recovery.scoring.monitor import false_alarms
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.spec import ThreatModel
from saebench_recovery.targets.target import Target
from tests.tiny import SITES, WIDTH, TinyTask, shared_target, tiny_dictionary, tiny_target

MONITORS: tuple[MonitorName, ...] = get_args(MonitorName)
SITE = Site.parse(SITES[0])


class Large(TinyTask):
    size = 400


def watched(name: str, target: Target, task: TinyTask, **config: Any) -> Defense:
    """A clamp, or another defense, under a monitor."""
    chosen = {"latents": 8, "monitor": name, **config}
    defense = registry.create("defense", chosen.pop("defense", "clamp"), chosen)
    assert isinstance(defense, Defense)
    defense.fit(target, task)
    defense.watch(target, task)
    return defense


@cache
def promising(name: MonitorName, defense: str) -> Defense:
    return watched(name, shared_target("llama"), Large(), false_alarms=0.2, defense=defense)


@pytest.mark.parametrize("defense", ["clamp", "multilayer"])
@pytest.mark.parametrize("name", MONITORS)
def test_it_rings_on_new_prompts_as_often_as_stated(name: MonitorName, defense: str) -> None:
    """The bound holds on average over calibrations; this is one."""
    monitored, target = promising(name, defense), shared_target("llama")
    examples = Large().examples(target, "evaluation")
    # Three standard errors: 200 prompts set the threshold, 400 are judged by it.
    error = (0.2 * 0.8 * (1 / 200 + 1 / 400)) ** 0.5
    for threat_model in get_args(ThreatModel):
        rung = false_alarms(DefendedModel(target, monitored, threat_model), examples)
        assert rung is not None
        assert rung.counted.rate == pytest.approx(0.2, abs=3 * error)


def test_error_rings_on_what_the_dictionary_cannot_express() -> None:
    target = tiny_target("llama")
    narrow = tiny_dictionary(SITE, latents=12)
    target.dictionaries[SITE] = narrow  # type: ignore[index]
    defense = watched("error", target, TinyTask(), latents=4)
    drawn = torch.Generator().manual_seed(77)
    basis, x = torch.linalg.qr(narrow.decoder_MD.T).Q, torch.randn(1, 50, WIDTH, generator=drawn)
    inside = x @ basis @ basis.T
    for entering in (True, False):
        loud = inside + 100 * (x - inside)
        assert (defense.alarm(SITE, loud, entering=entering) > 0).all()


@pytest.mark.parametrize("name", ["mahalanobis", "probe"])
def test_others_ring_far_from_undisturbed_text(name: MonitorName) -> None:
    defense, target = promising(name, "clamp"), shared_target("llama")
    prompts = [e.prompt for e in TinyTask().examples(target, "evaluation")]
    resid_ND = torch.cat([x for _, x in content_residuals(target, SITE, prompts)])
    drawn = torch.randn(resid_ND.shape, generator=torch.Generator().manual_seed(77))
    far_ND = resid_ND + 3 * resid_ND.norm(dim=1, keepdim=True) * normalize(drawn, dim=1)
    rung = defense.alarm(SITE, far_ND[None], entering=True) > 0
    assert rung.float().mean() > 0.9


def test_it_needs_enough_prompts_for_its_promise() -> None:
    class Few(TinyTask):
        size = 12

    with pytest.raises(UserError, match="needs 38 selection prompts"):
        watched("error", shared_target("llama"), Few())
    watched("error", shared_target("llama"), Few(), false_alarms=0.2)


def test_without_one_there_is_no_detector() -> None:
    clamp = Clamp(Clamp.Config(latents=8))
    clamp.fit(shared_target("llama"), TinyTask())
    clamp.watch(shared_target("llama"), TinyTask())
    assert clamp.false_alarms is None
    with pytest.raises(PluginError, match="no detector"):
        clamp.alarm(SITE, torch.zeros(1, 1, WIDTH), entering=True)


def test_a_detector_of_its_own_takes_no_monitor() -> None:
    class Own(Clamp):
        def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor:
            return resid_BTD.sum(-1)

    own = Own(Own.Config(latents=8, monitor="error"))
    own.fit(shared_target("llama"), TinyTask())
    with pytest.raises(UserError, match="detector of its own"):
        own.watch(shared_target("llama"), TinyTask())


@pytest.mark.parametrize("name", MONITORS)
def test_what_it_hears_does_not_depend_on_how_a_cpu_rounds(name: MonitorName) -> None:
    """Residuals that differ by rounding give scores that do: others must find the same alarms."""
    drawn = torch.Generator().manual_seed(77)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor * (1 + 1e-6 * torch.randn(tensor.shape, generator=drawn))

    resid_ND = torch.randn(600, WIDTH, generator=drawn) @ torch.randn(WIDTH, WIDTH, generator=drawn)
    pull_ND = torch.randn(600, WIDTH, generator=drawn)
    seen = Undisturbed(tiny_dictionary(SITE), resid_ND, pull_ND)
    again = replace(seen, resid_ND=rounded(resid_ND), pull_ND=rounded(pull_ND))
    score_N, other_N = (DETECTORS[name](one)(resid_ND) for one in (seen, again))
    assert float((score_N - other_N).abs().max()) < 1e-4 * float(score_N.std())
