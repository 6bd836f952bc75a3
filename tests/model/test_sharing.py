"""Rows that share a prefix, or are repeated, chosen or regrouped, keep their values."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.constraints import Free
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.perturbations.space import Posing
from saebench_recovery.perturbations.windows import lay_out
from saebench_recovery.spec import Limits
from tests.model.setting import (
    POSITIONS,
    TOLERANCE,
    clamp,
    prompts,
    random_delta,
    relative,
)
from tests.tiny import (
    ARCHITECTURES,
    TinyTask,
    shared_target,
)


def variants(example: Example) -> list[Example]:
    """One prompt asking for different answers, as budgets and the wrong target do."""
    return [example, example, example.with_candidates((5,), *example.candidates)]


def problem_of(
    active: DefendedModel,
    groups: Sequence[Sequence[Example]],
    positions: Sequence[Sequence[int]],
    site: Site,
) -> Problem:
    variants = len(groups[0])
    budgets_EV = torch.linspace(0.1, 1.0, variants).expand(len(groups), -1)
    goal_E = torch.ones(len(groups))
    rule = DriftRule(Limits(), dict.fromkeys(active.latents, 1.0))
    posing = Posing(
        active, TinyTask(), groups, budgets_EV, "relative", {}, goal_E, 0, Meter(), rule
    )
    windows = lay_out(posing, torch.tensor(positions), [site])
    space = Residual(
        windows.positions_NP,
        windows.engine.width,
        {site: Free()},
        constrained=False,
        units=windows.units(),
        norms=windows.norms,
    )
    return windows.problem(space)


def norms_NP(problem: Problem) -> Tensor:
    """Norms of the defended residual, which budgets are relative to."""
    (norms,) = Residual.of(problem).norms.values()
    return norms


@pytest.mark.parametrize("long_answers", [False, True], ids=["one-token", "long"])
@pytest.mark.parametrize("where", ["readout", "several"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_variants_that_share_a_prefix_equal_one_by_one(
    architecture: str, where: str, long_answers: bool
) -> None:
    target, site = shared_target(architecture), Site.parse("blocks.1.hook_resid_post")
    active = DefendedModel(target, clamp(target, [str(site)]))
    groups = [variants(e) for e in prompts(long_answers=long_answers)]
    shared = problem_of(active, groups, POSITIONS[where], site)
    positions = [row for row in POSITIONS[where] for _ in range(3)]
    delta = random_delta(site, positions)
    objectives, gradients, scales = [], [], []
    for n, example in enumerate(e for group in groups for e in group):
        alone = problem_of(active, [[example]], [positions[n]], site)
        objective_1, grad = alone.gradient(delta.rows(torch.tensor([n])))
        objectives.append(objective_1)
        gradients.append(grad[site])
        scales.append(norms_NP(alone))
    objective_N, grads = shared.gradient(delta)
    assert relative(objective_N, torch.cat(objectives)) < TOLERANCE
    assert relative(grads[site], torch.cat(gradients)) < TOLERANCE
    assert relative(norms_NP(shared), torch.cat(scales)) < TOLERANCE


@pytest.mark.parametrize("long_answers", [False, True], ids=["one-token", "long"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_rows_of_a_problem_keep_their_values(architecture: str, long_answers: bool) -> None:
    target, site = shared_target(architecture), Site.parse("blocks.1.hook_resid_post")
    active = DefendedModel(target, clamp(target, [str(site)]))
    groups = [variants(e) for e in prompts(long_answers=long_answers)]
    problem = problem_of(active, groups, POSITIONS["several"], site)
    delta = random_delta(site, [row for row in POSITIONS["several"] for _ in range(3)])
    objective_N, grads = problem.gradient(delta)
    for index, variants_kept in (
        ([4], 1),
        ([0, 2, 6, 8], 2),
        ([0, 5, 7, 8], 1),
        ([8, 3], 1),
        (list(range(9)), 3),
    ):
        chosen = torch.tensor(index)
        part = problem.rows(chosen)
        assert part.variants == variants_kept
        assert part.examples == tuple(problem.examples[i] for i in index)
        assert torch.equal(part.budget_N, problem.budget_N[chosen])
        again_N, again = part.gradient(delta.rows(chosen))
        assert relative(again_N, objective_N[chosen]) < TOLERANCE
        assert relative(again[site], grads[site][chosen]) < TOLERANCE
        halved = part.rows(torch.tensor([0]))
        (grad_1PD,) = halved.gradient(delta.rows(chosen[:1]))[1].values()
        assert relative(grad_1PD, grads[site][chosen[:1]]) < TOLERANCE


def test_rows_are_chosen_in_groups_that_share_a_prefix() -> None:
    target, site = shared_target("gpt2"), Site.parse("blocks.1.hook_resid_post")
    groups = [variants(e) for e in prompts(long_answers=False)]
    problem = problem_of(DefendedModel(target, None), groups, POSITIONS["readout"], site)
    for wanted, chosen in (
        ([1, 1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([0, 0, 1, 0, 0, 0, 1, 0, 0], [2, 6]),
        ([0, 1, 1, 0, 0, 0, 0, 0, 1], [1, 2, 6, 8]),  # the third prompt is filled up
        ([0, 0, 0, 0, 0, 0, 0, 0, 0], []),
    ):
        index = problem.groups(torch.tensor(wanted, dtype=torch.bool))
        assert index.tolist() == chosen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_repeated_passes_leave_the_prefix_alone(architecture: str) -> None:
    target, site = shared_target(architecture), Site.parse("blocks.1.hook_resid_post")
    active = DefendedModel(target, clamp(target, [str(site)]))
    groups = [[e] for e in prompts(long_answers=False)]
    problem = problem_of(active, groups, POSITIONS["several"], site)
    start = problem._engine.start
    before = [kv and (kv[0].clone(), kv[1].clone()) for kv in start.prefix.keys_values]
    delta = random_delta(site, POSITIONS["several"])
    first_N, first = problem.gradient(delta)
    for _ in range(3):
        again_N, again = problem.gradient(delta)
        assert relative(again_N, first_N) < TOLERANCE
        assert relative(again[site], first[site]) < TOLERANCE
    for old, new in zip(before, start.prefix.keys_values, strict=True):
        assert (old is None) == (new is None)
        if old and new:
            assert torch.equal(old[0], new[0])
            assert torch.equal(old[1], new[1])


def test_a_prefix_lies_as_products_with_few_rows_read_it() -> None:
    target, site = shared_target("gpt2"), Site.parse("blocks.1.hook_resid_post")
    active = DefendedModel(target, clamp(target, [str(site)]))
    groups = [[e] for e in prompts(long_answers=False)]
    start = problem_of(active, groups, POSITIONS["several"], site)._engine.start
    one = torch.tensor([0])
    kept = [pair for each in (start, start.rows(one, one)) for pair in each.prefix.keys_values]
    laid = [part.mT.is_contiguous() for pair in kept if pair for part in pair]
    assert laid
    assert all(laid)


@pytest.mark.parametrize("long_answers", [False, True], ids=["one-token", "long"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batching_does_not_change_results(architecture: str, long_answers: bool) -> None:
    """Padding differs from batch to batch; results may differ by float32 rounding only."""
    target, site = shared_target(architecture), Site.parse("blocks.1.hook_resid_post")
    active = DefendedModel(target, clamp(target, [str(site)]))
    examples = prompts(long_answers=long_answers)
    delta = random_delta(site, POSITIONS["several"])
    whole = problem_of(active, [[e] for e in examples], POSITIONS["several"], site)
    objective_E, grads = whole.gradient(delta)
    again_E, again_EPD, norms_EP = (
        torch.zeros_like(t) for t in (objective_E, grads[site], norms_NP(whole))
    )
    for order in ([2, 0], [1]):
        index = torch.tensor(order)
        positions = [POSITIONS["several"][e] for e in order]
        part = problem_of(active, [[examples[e]] for e in order], positions, site)
        again_E[index], found = part.gradient(delta.rows(index))
        again_EPD[index], norms_EP[index] = found[site], norms_NP(part)
    assert relative(again_E, objective_E) < TOLERANCE
    assert relative(again_EPD, grads[site]) < TOLERANCE
    assert relative(norms_EP, norms_NP(whole)) < TOLERANCE
