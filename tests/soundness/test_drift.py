"""Rule 4: drift, in float32, at perturbed positions, readout and later ones; null where undefined.

Its formulas are tested in `perturbations/test_drift.py`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import (
    Attack,
    Example,
    ResidualDelta,
)
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.perturbations.drift import Reading, drift, scopes
from saebench_recovery.perturbations.problem import Problem
from tests.soundness.setting import (
    FEW_LATENTS,
    LATER_SITE,
    SITE,
    clamp,
    evaluation,
    fitted,
    random_delta,
    run,
    standard,
    trace_of,
)
from tests.tiny import BOS, shared_target, tiny_model, tiny_target


def test_drift_scopes_are_separate() -> None:
    """A delta in the middle moves latents there and, at a later site, at later positions."""
    examples = evaluation()[:8]
    middle = [[len(e.prompt) // 2] for e in examples]
    delta = random_delta(middle)

    def drift_at(site: Site) -> dict[str, Tensor]:
        many = clamp()
        many.latents = {site: shared_target("gpt2").dictionary(site).defended(torch.arange(40))}
        active, laid = DefendedModel(shared_target("gpt2"), many, "post"), batch(examples)
        readings = []
        for moved in (None, delta):
            trace = trace_of(active, examples, moved)
            readings.append(Reading(trace.z, trace.p))
        found = drift(readings[0], readings[1], many.latents, scopes(laid, middle_EP), {site: 1.0})
        return {name: scope.metrics["l2"] for name, scope in found.items()}

    middle_EP = torch.tensor(middle)
    here, downstream = drift_at(SITE), drift_at(LATER_SITE)
    assert (here["perturbed"] > 0).all()
    assert (here["readout"] == 0).all()
    assert (here["later"] == 0).all()
    assert (downstream["readout"] > 0).all()
    assert (downstream["later"] > 0).all()


def test_scopes_cover_perturbed_readout_and_later_positions() -> None:
    example = Example("", (BOS, 5, 6, 7, 8), ((11,), (21,)))
    shorter = Example("", (BOS, 5, 6), ((11,), (21,)))
    found = scopes(batch([example, shorter]), torch.tensor([[1, 3], [2, -1]]))
    assert found["perturbed"].int().tolist() == [[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]
    assert found["readout"].int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert found["later"].int().tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]


def test_latents_of_a_half_precision_model_are_read_in_float32() -> None:
    target = tiny_target("llama", model=tiny_model("llama").bfloat16())
    active = fitted(clamp(), target=target)
    trace = trace_of(active, evaluation()[:3])
    for read in (trace.z[SITE], trace.p[SITE], trace.before[SITE], trace.after[SITE]):
        assert read.dtype == torch.float32
    # Not merely converted after the fact: a bfloat16 product would be on a coarse grid.
    assert not torch.equal(trace.p[SITE], trace.p[SITE].bfloat16().float())


class AlongLatent(Attack):
    """Spends the budget in the direction of the first defended latent."""

    def __init__(self, defense: Clamp) -> None:
        super().__init__()
        self.defense = defense

    def search(self, problem: Problem) -> ResidualDelta:
        direction_D = self.defense.latents[SITE].columns_DS[:, 0]
        moved = {s: v + 1e3 * direction_D for s, v in problem.zeros().values.items()}
        return replace(problem.zeros(), values=moved)


def test_relative_drift_is_null_where_the_defended_latents_are_silent() -> None:
    """Inverted latents switch off, so that there is nothing for drift to be relative to."""
    inverting = Clamp(Clamp.Config(**FEW_LATENTS, multiplier=-2.0))
    scored = run(
        inverting, AlongLatent(inverting), threat_model="post", budget_unit="relative", budget=1.0
    )
    silent = [line for line in scored.records if line.drift["perturbed"]["relative_l2"] is None]
    assert silent
    assert any((line.drift["perturbed"]["l2"] or 0) > 0 for line in silent)
    assert scored.row.drift["perturbed"].relative_l2.n == len(scored.records) - len(silent)


def test_each_example_has_its_own_drift() -> None:
    scored = standard("unconstrained")
    drifts = [line.drift["perturbed"]["l2"] for line in scored.records]
    assert len(set(drifts)) == len(drifts) > 1
