"""A bfloat16 model is read, perturbed and judged in float32: rounding breaks no constraint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.perturbations.constraints import constraint_for
from saebench_recovery.sae.latents import Normalisation
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target
from tests.journal import Scored, score
from tests.tiny import SITES, WIDTH, TinyTask, tiny_model, tiny_target

SITE = Site.parse(SITES[0])
BF16 = torch.finfo(torch.bfloat16).eps


def rounded(architecture: str, normalisation: Normalisation = "none") -> Target:
    target = tiny_target(architecture, model=tiny_model(architecture).bfloat16())
    plain = target.dictionaries.items()
    return replace(
        target, dictionaries={s: replace(d, normalisation=normalisation) for s, d in plain}
    )


def clamp() -> Clamp:
    return Clamp(Clamp.Config(latents=8, multiplier=0.3))


def attacked(target: Target) -> Scored:
    attack = Orthogonal(Orthogonal.Config(steps=6))
    return score(target, TinyTask(), clamp(), attack, RunSpec(limit=12))


def test_a_delta_is_added_and_projected_in_float32() -> None:
    target = rounded("llama")
    defense = clamp()
    defense.fit(target, TinyTask())
    examples = TinyTask().examples(target, "evaluation")[:4]
    laid = target.batch(examples)
    latents = defense.latents[SITE]

    def trace(delta: ResidualDelta | None) -> Trace:
        seen = Trace()
        whole_pass(DefendedModel(target, defense), TinyTask(), laid, delta, seen)
        return seen

    still, readout_E1 = trace(None), laid.readout_E[:, None]
    rows = torch.arange(len(examples))

    def at(values: Tensor) -> Tensor:
        return values[rows, laid.readout_E]

    base_E1D = at(still.before[SITE])[:, None]
    drawn = torch.randn(4, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    # So short that every coordinate would be lost beside the residual's own.
    step_E1D = drawn * base_E1D.abs() * BF16 / 16
    allowed = constraint_for(latents, base_E1D, torch.zeros_like(base_E1D)).project(step_E1D)
    moved = trace(ResidualDelta({SITE: allowed}, readout_E1))
    assert torch.equal(base_E1D + allowed, at(moved.before[SITE])[:, None])
    assert not torch.equal(at(moved.before[SITE]), at(still.before[SITE]))
    for reading in (moved.z[SITE], moved.p[SITE], moved.before[SITE], moved.after[SITE], allowed):
        assert reading.dtype == torch.float32
    torch.testing.assert_close(moved.p[SITE], still.p[SITE], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_a_null_space_is_as_exact_as_in_float32(architecture: str) -> None:
    found = attacked(rounded(architecture))
    assert found.row.recovery.k > 0
    drift = found.row.drift["perturbed"].relative_l2.max
    assert drift is not None
    assert drift < 1e-5
    assert not {"constraint-broken", "tail-disagrees"} & set(found.row.flag_names)
    deltas = [t for t in found.headline().tensors().values() if t.is_floating_point()]
    assert {delta.dtype for delta in deltas} == {torch.float32}


def test_a_sphere_is_exact_up_to_the_rounding_of_the_residual_that_it_is_made_for() -> None:
    found = attacked(rounded("llama", "constant_norm_rescale"))
    drift = found.row.drift["perturbed"].relative_l2.max
    assert drift is not None
    assert 1e-5 < drift < BF16
    assert "constraint-broken" not in found.row.flag_names


def test_answers_are_compared_in_float32() -> None:
    target = rounded("llama")
    hidden_ND = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits_NC = target.logits_of(hidden_ND, torch.tensor([[5, 7, 9]]).expand(3, 3))
    model: Any = target.model
    wanted_NV = hidden_ND.double() @ model.get_output_embeddings().weight.double().T
    torch.testing.assert_close(logits_NC.double(), wanted_NV[:, [5, 7, 9]], rtol=1e-5, atol=1e-6)
