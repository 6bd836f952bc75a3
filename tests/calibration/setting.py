"""Problems whose smallest recovering norm is known: the organism's site after the last block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense, Task
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.constraints import orthonormal_basis
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.attack_and_score import posed, searched
from saebench_recovery.scoring.controls import climbed
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples, valid_flips
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target
from tests.calibration.exact import Array, Head, Optimum, smallest

# Clamps after the last block that suppress something there.
CLAMPS: dict[str, dict[str, Any]] = {
    "ioi": {"latents": 32, "multiplier": -4.0},
    "unlearning": {"latents": 64, "multiplier": -8.0},
    "refusal": {"latents": 16, "multiplier": 4.0},
}
EDGE = 0.99  # of the budget: whether more is inside is a matter of steps


@cache
def organism() -> Target:
    return load_target("organism", "cpu")


@cache
def last_site(task: str, limit: int) -> tuple[Setting, tuple[Flip, ...]]:
    """The valid flips of a clamp after the last block."""
    target = organism()
    site = f"blocks.{target.depth() - 1}.hook_resid_post"
    made = registry.create("task", task, {})
    clamp = registry.create("defense", "clamp", {"site": site, **CLAMPS[task]})
    attack = registry.create("attack", "orthogonal", {"positions": "readout"})
    assert isinstance(made, Task)
    assert isinstance(clamp, Defense)
    assert isinstance(attack, Attack)
    setting = Setting(target, made, clamp, attack, RunSpec(limit=limit, budget_unit="relative"))
    made.fit(target, Site.parse(site))
    examples = evaluation_examples(setting)
    clamp.fit(target, made)
    return setting, tuple(valid_flips(setting, examples)[1])


def optima(task: str, limit: int, *, wrong: bool) -> list[Optimum | None]:
    """The exact optimum of each flip, towards its right or a wrong answer."""
    setting, flips = last_site(task, limit)
    (site,) = setting.defense.latents
    examples = [flip.wrong if wrong else flip.example for flip in flips]
    batch, trace = setting.target.batch(examples), Trace()
    whole_pass(setting.active, setting.task, batch, trace=trace, watch=(site,), distribution=False)
    first = torch.arange(len(examples)) * batch.rows_per_example
    resid_ED = trace.after[site][first, batch.readout_E].double().numpy()
    free_DK = _complement(setting, site)
    head, generates = _head(setting.target), bool(setting.task.new_tokens)
    found = []
    for example, resid_D in zip(examples, resid_ED, strict=True):
        token = example.candidates[0][0]
        named = [candidate[0] for candidate in example.candidates]
        # A text begins with the token that beats all others.
        rivals = list(range(len(head.weight_VD))) if generates else named
        found.append(smallest(head, resid_D, free_DK, token, [r for r in rivals if r != token]))
    return found


def posed_for(attack: Attack, task: str, limit: int) -> tuple[Setting, Problem]:
    """The flips at every budget that the attack is asked for, as the scoring poses them."""
    setting, flips = last_site(task, limit)
    setting = replace(setting, attack=attack)
    return setting, posed(setting, flips, Meter())


def budgets(problem: Problem) -> Tensor:
    """The largest budget [E] of each flip, as a length over all positions."""
    return problem.pooled_radius_N.view(-1, problem.variants).amax(1)


def smallest_norms(attack: Attack, task: str, limit: int, *, wrong: bool) -> Tensor:
    """Smallest norm [E] at which each flip is recovered or injected; infinite where it is not.

    As the row has it: by one search for the smallest norm where the attack has one, and otherwise
    from every budget of the curve, shortened along its ray.
    """
    setting, problem = posed_for(attack, task, limit)
    ladder = climbed(problem, searched(setting, problem), setting.head)
    unit_N = problem.pooled_radius_N / problem.budget_N
    smallest_E: Tensor = ladder.smallest_norm_E(wrong=wrong) * unit_N[:: problem.variants]
    return smallest_E


def ratios(optima: Sequence[Optimum | None], norm_E: Tensor, budget_E: Tensor) -> Array:
    """Found over exact for each flip whose verified optimum is clearly inside the budget.

    Where the wrong answer is shown already, there is nothing to find.
    """
    each = [
        float(norm) / optimum.norm
        for optimum, norm, budget in zip(optima, norm_E, budget_E, strict=True)
        if optimum is not None and optimum.verified and 0 < optimum.norm <= EDGE * float(budget)
    ]
    return np.array(each)


def _complement(setting: Setting, site: Site) -> Array:
    """An orthonormal basis [D, K] of what the defended encoder columns do not read."""
    basis_DK = orthonormal_basis(setting.defense.latents[site].columns_DS)
    whole_DD, _ = torch.linalg.qr(basis_DK, mode="complete")
    free_DK: Array = whole_DD[:, basis_DK.shape[1] :].numpy()
    return free_DK


def _head(target: Target) -> Head:
    model: Any = target.model
    norm = model.transformer.ln_f
    weight_VD, gain_D, bias_D = (
        t.detach().double().numpy()
        for t in (model.get_output_embeddings().weight, norm.weight, norm.bias)
    )
    return Head(weight_VD, gain_D, bias_D, float(norm.eps))
