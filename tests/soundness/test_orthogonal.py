"""Rule 3: `orthogonal` keeps the delta itself in the null space."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.schema import Row
from saebench_recovery.spec import ThreatModel
from saebench_recovery.targets.target import Target
from tests.soundness.setting import (
    FEW_LATENTS,
    SITE,
    STEPS,
    THREAT_MODELS,
    clamp,
    orthogonal,
    run,
)
from tests.tiny import tiny_target


class GradientProjected(Attack):
    """The published way: the gradient is projected, then Adam rescales each coordinate."""

    constrained = True

    def search(self, problem: Problem) -> ResidualDelta:
        delta = problem.zeros()
        leaf = delta.values[SITE].requires_grad_()
        adam = torch.optim.Adam([leaf], lr=0.1)
        for _ in range(STEPS["steps"]):
            grad = problem.gradient(delta)[1][SITE]
            leaf.grad = -Residual.of(problem).constraints[SITE].project(grad)
            adam.step()
        return replace(delta, values={SITE: leaf.detach()})


def dictionaries(
    normalisation: Literal["none", "layer_norm", "constant_norm_rescale"],
) -> Target:
    """A target whose SAEs normalise their input."""
    target = tiny_target("gpt2")
    centred = normalisation == "layer_norm"
    for site, sae in target.dictionaries.items():
        encoder = sae.encoder_DM - sae.encoder_DM.mean(0) if centred else sae.encoder_DM
        changed = replace(sae, normalisation=normalisation, centred=centred, encoder_DM=encoder)
        target.dictionaries[site] = changed  # type: ignore[index]
    return target


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
@pytest.mark.parametrize("positions", ["readout", "all"])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_orthogonal_stays_orthogonal(
    normalisation: Any, positions: str, threat_model: ThreatModel
) -> None:
    target = dictionaries(normalisation)
    attack = orthogonal(positions=positions)
    row = run(clamp(), attack, target=target, threat_model=threat_model).row
    assert row.constraint.kind == "exact"
    assert row.recovery.k > 0
    assert row.recovery.k == row.constrained.k
    for scope in ("perturbed", "readout"):
        largest = row.drift[scope].relative_l2.max
        assert largest is not None
        assert largest <= 1e-4
    assert "constraint-broken" not in row.flag_names


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_projecting_only_the_gradient_is_not_orthogonal(threat_model: ThreatModel) -> None:
    row = run(clamp(), GradientProjected(), threat_model=threat_model).row
    assert row.recovery.k > 0
    assert row.drift["perturbed"].relative_l2.mean is not None
    assert row.drift["perturbed"].relative_l2.mean > 1e-2
    assert "constraint-broken" in row.flag_names


class Spares(Clamp):
    """Edits all declared latents but the last, the more the stronger the last one is."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        latents = self.latents[site]
        z_BTS, p_BTS = latents.read(resid_BTD), latents.preactivation(resid_BTD)
        change_BTS = -0.7 * z_BTS * (1 + 0.1 * p_BTS[..., -1:])
        change_BTS[..., -1] = 0
        return latents.write(resid_BTD, change_BTS)


def sparing(threat_model: ThreatModel) -> Row:
    return run(Spares(Spares.Config(**FEW_LATENTS)), orthogonal(), threat_model=threat_model).row


def test_a_declared_latent_that_is_not_held_makes_the_constraint_first_order() -> None:
    row = sparing("reclamp")
    assert row.constraint.kind == "first-order"
    assert "not held (1)" in row.constraint.note
    largest = row.drift["perturbed"].relative_l2.max
    assert largest is not None
    assert largest > 1e-2  # it moves, and the defense then moves the others
    assert "first-order-constraint" in row.flag_names
    assert "constraint-broken" not in row.flag_names


def test_behind_the_defense_what_is_not_held_moves_nothing() -> None:
    row = sparing("post")
    assert row.constraint.kind == "exact"
    largest = row.drift["perturbed"].relative_l2.max
    assert largest is not None
    assert largest <= 1e-4
