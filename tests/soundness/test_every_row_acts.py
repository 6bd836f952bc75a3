"""Rule 2: every row of a delta acts when it is scored, in the order that the threat model asks for.

For generated tokens it is tested in `model/test_generation.py`.
"""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import (
    ResidualDelta,
)
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.spec import ThreatModel
from tests.soundness.setting import (
    FEW_LATENTS,
    SITE,
    THREAT_MODELS,
    Seen,
    clamp,
    evaluation,
    fitted,
    last_of,
    random_delta,
    run,
    trace_of,
)
from tests.tiny import WIDTH, shared_target


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_every_row_of_a_delta_changes_the_residual_that_is_scored(
    threat_model: ThreatModel,
) -> None:
    active, examples = fitted(clamp(), threat_model), evaluation()[:6]
    delta = random_delta([[len(e.prompt) // 2, len(e.prompt) - 1] for e in examples])
    without, with_delta = trace_of(active, examples), trace_of(active, examples, delta)
    moved = (
        with_delta.before[SITE] - without.before[SITE]
        if threat_model == "reclamp"
        else with_delta.after[SITE] - without.after[SITE]
    )
    for e, example in enumerate(examples):
        rows = {
            int(p): v for p, v in zip(delta.positions_EP[e], delta.values[SITE][e], strict=True)
        }
        for position in range(len(example.prompt)):
            wanted_D = rows.get(position, torch.zeros(WIDTH))
            torch.testing.assert_close(moved[e, position], wanted_D, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["task", "readout", "all"])
def test_bos_and_padding_are_never_perturbed_by_default(positions: str) -> None:
    seen = Seen()
    seen.config = Orthogonal.Config(steps=2, positions=positions)
    run(clamp(), seen)
    for problem in seen.problems:
        for example, row_P in zip(problem.examples, problem.positions_NP.tolist(), strict=True):
            perturbed = [p for p in row_P if p >= 0]
            assert perturbed
            assert 0 < min(perturbed) <= max(perturbed) < len(example.prompt)


class Everywhere(Clamp):
    """Moves every token it is given."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD + 100


@pytest.mark.parametrize("include_bos", [False, True])
def test_bos_and_padding_are_spared_by_the_defense(include_bos: bool) -> None:
    everywhere = Everywhere(Clamp.Config(**FEW_LATENTS, include_bos=include_bos))
    active, examples = fitted(everywhere), evaluation()[:8]
    laid, trace = batch(examples), trace_of(active, examples)
    moved_RQ = (trace.after[SITE] != trace.before[SITE]).any(2)
    wanted_RQ = laid.mask_RQ & (include_bos | (laid.position_RQ > 0))
    assert not laid.mask_RQ.all()
    assert torch.equal(moved_RQ, wanted_RQ)


def test_reclamp_undoes_a_delta_inside_the_defended_direction() -> None:
    """One latent of unit norm is clamped to zero: whatever is added along it is taken away."""
    moved, without = traces_with_the_latent_raised("reclamp")
    torch.testing.assert_close(moved.after[SITE], without.after[SITE], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.z[SITE], without.z[SITE], rtol=0, atol=1e-5)


def test_post_leaves_a_delta_inside_the_defended_direction() -> None:
    moved, without = traces_with_the_latent_raised("post")
    assert (moved.after[SITE] - without.after[SITE]).norm(dim=2).amax() > 10
    assert moved.z[SITE].amax() > 10


def traces_with_the_latent_raised(threat_model: ThreatModel) -> tuple[Trace, Trace]:
    """Passes in which one defended latent is raised by 20, and without the delta."""
    target = shared_target("gpt2")
    zero = Clamp(Clamp.Config(latents=1, value=0.0, positive_only=False))
    zero.latents = {SITE: target.dictionary(SITE).defended(torch.tensor([7]))}
    active, examples = DefendedModel(target, zero, threat_model), evaluation()
    bare = trace_of(DefendedModel(target, None), examples)
    on = zero.latents[SITE].read(bare.after[SITE])[:, :, 0] > 0
    # Where it is on, the clamp also takes away its own activation: the delta alone is compared.
    examples = [e for i, e in enumerate(examples) if on[i, len(e.prompt) - 1]]
    assert examples
    raised_EPD = 20 * zero.latents[SITE].columns_DS.T.expand(len(examples), 1, WIDTH)
    delta = ResidualDelta({SITE: raised_EPD}, last_of(examples)[:, None])
    return trace_of(active, examples, delta), trace_of(active, examples)
