"""The tail forward is the whole model: against transformers' own eager attention, run plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import KINDS, Site
from saebench_recovery.interfaces import Example, ResidualDelta
from saebench_recovery.model import attention
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import final_states, forward, prefill
from saebench_recovery.model.hooks import Edit, edited
from saebench_recovery.model.meter import Meter
from saebench_recovery.model.plain import Conditions, PlainModel
from saebench_recovery.perturbations.build import build
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.spec import ThreatModel
from saebench_recovery.targets.target import Target
from tests.plain import plain_logits, plain_model
from tests.tiny import (
    ARCHITECTURES,
    BOS,
    LAYERS,
    VOCABULARY,
    WIDTH,
    WINDOW,
    TinyTask,
    shared_target,
    tiny_model,
)

TOLERANCE = 1e-5  # relative to the largest entry
METER = Meter()  # one for all: it counts each kind of pass once, slowly
LAST = LAYERS - 1
PLACES = [
    (architecture, Site(layer, kind))
    for architecture in ARCHITECTURES
    for layer in (0, LAST)
    for kind in KINDS
    # Attention and MLP run in parallel: there is no residual between them.
    if (architecture, kind) != ("neox", "hook_resid_mid")
]
# Around every one of those sites: in earlier, the same and later blocks.
DEFENDED = (
    "blocks.0.hook_attn_out",
    "blocks.0.hook_mlp_out",
    "blocks.1.hook_resid_post",
    f"blocks.{LAST}.hook_resid_pre",
    f"blocks.{LAST}.hook_attn_out",
    f"blocks.{LAST}.hook_resid_post",
)
LENGTHS = (7, 15, 11)  # two of them longer than the sliding window
# Perturbed positions per example, -1 where it has fewer.
POSITIONS = {
    "readout": [[6], [14], [10]],
    "several": [[2, 6, -1], [3, 9, 14], [10, -1, -1]],
}

assert max(LENGTHS) > WINDOW + 3


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def prompts(*, long_answers: bool, seed: int = 0) -> list[Example]:
    """Prompts of different lengths with two or three answers of one or several tokens."""
    drawn = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=drawn).tolist())

    def answers(i: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tokens(1 + (i + c) % 3 if long_answers else 1) for c in range(2 + i % 2))

    return [Example(str(i), (BOS, *tokens(n - 1)), answers(i)) for i, n in enumerate(LENGTHS)]


def random_delta(site: Site, positions: Sequence[Sequence[int]], seed: int = 0) -> ResidualDelta:
    positions_EP = torch.tensor(positions)
    drawn = torch.Generator().manual_seed(seed)
    values_EPD = torch.randn(*positions_EP.shape, WIDTH, generator=drawn)
    return ResidualDelta({site: values_EPD * (positions_EP >= 0)[..., None]}, positions_EP)


def clamp(target: Target, sites: Sequence[str]) -> Clamp:
    """Clamps twelve latents at each of several sites."""
    defense = Clamp()
    features = torch.arange(0, 96, 8)
    defense.latents = {
        Site.parse(s): target.dictionary(Site.parse(s)).defended(features) for s in sites
    }
    return defense


def problem_of(
    active: DefendedModel,
    groups: Sequence[Sequence[Example]],
    positions: Sequence[Sequence[int]],
    site: Site,
) -> Problem:
    budgets_EV = torch.linspace(0.1, 1.0, len(groups[0])).expand(len(groups), -1)
    goal_E = torch.ones(len(groups))
    where = torch.tensor(positions)
    return build(active, TinyTask(), groups, where, [site], budgets_EV, goal_E, 0, METER)


def engine(
    active: DefendedModel, examples: Sequence[Example], delta: ResidualDelta, weight_EC: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores [E, C] from the tail, and the gradient of their weighted sum by the delta."""
    (site,) = delta.values
    first = [min(p for p in row if p >= 0) for row in delta.positions_EP.tolist()]
    laid = batch(examples, first)
    start = prefill(active.target, laid.prefix, laid, active.edits, active.edits(laid), site)
    leaf = delta.values[site].clone().requires_grad_()
    moved = replace(delta, values={site: leaf})
    scores_EC = forward(active.target, laid, active.edits(laid, moved), start).scores_EC
    total = (scores_EC * weight_EC)[torch.isfinite(scores_EC)].sum()
    (grad_EPD,) = torch.autograd.grad(total, leaf)
    return scores_EC.detach(), grad_EPD


def plain(
    model: PlainModel,
    active: DefendedModel,
    examples: Sequence[Example],
    delta: ResidualDelta,
    weight_EC: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same, one example at a time through the whole model."""
    (site,) = delta.values
    scores_EC = torch.full(weight_EC.shape, -torch.inf)
    grads = []
    for e, example in enumerate(examples):
        leaf_1PD = delta.values[site][e : e + 1].clone().requires_grad_()
        moved = ResidualDelta({site: leaf_1PD}, delta.positions_EP[e : e + 1])
        conditions = Conditions(active.defense, moved, active.threat_model)
        (scores_C,) = model.output(example, conditions).scores_EC
        total = (scores_C * weight_EC[e, : len(scores_C)]).sum()
        (grad_1PD,) = torch.autograd.grad(total, leaf_1PD)
        scores_EC[e, : len(scores_C)] = scores_C.detach()
        grads.append(grad_1PD[0])
    return scores_EC, torch.stack(grads)


@cache
def reference(architecture: str) -> PlainModel:
    return plain_model(tiny_model(architecture))


def compare(
    architecture: str,
    active: DefendedModel,
    examples: Sequence[Example],
    delta: ResidualDelta,
) -> None:
    weight_EC = torch.randn(len(examples), 3, generator=torch.Generator().manual_seed(1))
    scores_EC, grad_EPD = engine(active, examples, delta, weight_EC)
    wanted_EC, wanted_EPD = plain(reference(architecture), active, examples, delta, weight_EC)
    real = torch.isfinite(wanted_EC)
    assert torch.equal(torch.isfinite(scores_EC), real)
    assert relative(scores_EC[real], wanted_EC[real]) < TOLERANCE
    assert relative(grad_EPD, wanted_EPD) < TOLERANCE


@pytest.mark.parametrize(
    ("where", "long_answers"),
    [("readout", False), ("several", True)],
    ids=["readout-one-token", "several-long"],
)
@pytest.mark.parametrize(("architecture", "site"), PLACES, ids=str)
def test_tail_equals_whole_model(
    architecture: str, site: Site, where: str, long_answers: bool
) -> None:
    active = DefendedModel(shared_target(architecture), None)
    examples = prompts(long_answers=long_answers)
    compare(architecture, active, examples, random_delta(site, POSITIONS[where]))


@pytest.mark.parametrize("threat_model", get_args(ThreatModel))
@pytest.mark.parametrize(("architecture", "site"), PLACES, ids=str)
def test_tail_equals_whole_model_under_an_active_defense(
    architecture: str, site: Site, threat_model: ThreatModel
) -> None:
    target = shared_target(architecture, DEFENDED)
    active = DefendedModel(target, clamp(target, DEFENDED), threat_model)
    examples = prompts(long_answers=False)
    compare(architecture, active, examples, random_delta(site, POSITIONS["several"]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_position_but_bos_perturbed(architecture: str) -> None:
    active = DefendedModel(shared_target(architecture), None)
    positions = [[*range(1, n), *[-1] * (max(LENGTHS) - n)] for n in LENGTHS]
    delta = random_delta(Site(1, "hook_resid_post"), positions)
    compare(architecture, active, prompts(long_answers=True), delta)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tail_without_a_prefix(architecture: str) -> None:
    """Every example starts at position 0, so nothing can be cached."""
    active = DefendedModel(shared_target(architecture), None)
    delta = random_delta(Site(0, "hook_resid_pre"), [[0, 6], [0, 14], [0, 10]])
    compare(architecture, active, prompts(long_answers=False), delta)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_example_without_a_prefix_beside_others_with_one(architecture: str) -> None:
    active = DefendedModel(shared_target(architecture), None)
    delta = random_delta(Site(1, "hook_resid_post"), [[0, 6], [13, 14], [5, 10]])
    compare(architecture, active, prompts(long_answers=False), delta)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_pass_of_a_padded_batch(architecture: str) -> None:
    """Final states and next-token distribution of every example are those of a pass alone."""
    target, examples = shared_target(architecture, DEFENDED), prompts(long_answers=False)
    active = DefendedModel(target, clamp(target, DEFENDED))
    laid = batch(examples)
    output = forward(target, laid, active.edits(laid), distribution=True)
    logits_RQV = target.logits(final_states(target, laid, active.edits(laid)))
    assert output.logprobs_EV is not None
    for e, example in enumerate(examples):
        conditions = Conditions(active.defense)
        wanted_TV = reference(architecture).run(example.prompt, conditions).logits_TV
        assert relative(logits_RQV[e, : len(example.prompt)], wanted_TV) < TOLERANCE
        assert relative(output.logprobs_EV[e], wanted_TV[-1].log_softmax(-1)) < TOLERANCE


@pytest.mark.parametrize("pool", ["blocks.1.hook_resid_post", "blocks.2.hook_attn_out"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_pooled_residual_is_the_mean_over_content_tokens(architecture: str, pool: str) -> None:
    """At a site that is itself perturbed and defended, and at a later one."""
    target, site = shared_target(architecture), Site.parse("blocks.1.hook_resid_post")
    active = DefendedModel(target, clamp(target, [str(site)]))
    examples, delta = prompts(long_answers=False), random_delta(site, POSITIONS["several"])
    laid = batch(examples, [0] * len(examples))
    start = prefill(target, laid.prefix, laid, active.edits, active.edits(laid), site)
    edits = active.edits(laid, delta)
    whole = forward(target, laid, edits, pool=Site.parse(pool)).pooled_ED
    tail = forward(target, laid, edits, start, pool=Site.parse(pool)).pooled_ED
    assert whole is not None
    assert tail is not None
    for e, example in enumerate(examples):
        conditions = Conditions(active.defense, delta.rows(torch.tensor([e])))
        wanted = reference(architecture).output(example, conditions, pool=Site.parse(pool))
        assert wanted.pooled_ED is not None
        (wanted_D,) = wanted.pooled_ED
        assert relative(whole[e], wanted_D) < TOLERANCE
        assert relative(tail[e], wanted_D) < TOLERANCE


@pytest.mark.parametrize(("architecture", "site"), PLACES, ids=str)
def test_hook_points_see_what_plain_hooks_see(architecture: str, site: Site) -> None:
    example = prompts(long_answers=False)[0]
    seen: list[Tensor] = []

    def watch(resid: Tensor) -> Tensor:
        seen.append(resid)
        return resid

    forward(shared_target(architecture), batch([example]), {site: watch})
    plain_logits(reference(architecture), example.prompt, {site: watch})
    assert relative(seen[0], seen[1]) < TOLERANCE


# --- sharing, repeating, regrouping -----------------------------------------------------------


def variants(example: Example) -> list[Example]:
    """One prompt asking for different answers, as budgets and the wrong target do."""
    return [example, example, example.with_candidates((5,), *example.candidates)]


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
        scales.append(alone.scale_N)
    objective_N, grads = shared.gradient(delta)
    assert relative(objective_N, torch.cat(objectives)) < TOLERANCE
    assert relative(grads[site], torch.cat(gradients)) < TOLERANCE
    assert relative(shared.scale_N, torch.cat(scales)) < TOLERANCE


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
    before = [kv and (kv[0].clone(), kv[1].clone()) for kv in problem.start.prefix.keys_values]
    delta = random_delta(site, POSITIONS["several"])
    first_N, first = problem.gradient(delta)
    for _ in range(3):
        again_N, again = problem.gradient(delta)
        assert relative(again_N, first_N) < TOLERANCE
        assert relative(again[site], first[site]) < TOLERANCE
    for old, new in zip(before, problem.start.prefix.keys_values, strict=True):
        assert (old is None) == (new is None)
        if old and new:
            assert torch.equal(old[0], new[0])
            assert torch.equal(old[1], new[1])


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
    again_E, again_EPD, scale_E = (
        torch.zeros_like(t) for t in (objective_E, grads[site], whole.scale_N)
    )
    for order in ([2, 0], [1]):
        index = torch.tensor(order)
        positions = [POSITIONS["several"][e] for e in order]
        part = problem_of(active, [[examples[e]] for e in order], positions, site)
        again_E[index], found = part.gradient(delta.rows(index))
        again_EPD[index], scale_E[index] = found[site], part.scale_N
    assert relative(again_E, objective_E) < TOLERANCE
    assert relative(again_EPD, grads[site]) < TOLERANCE
    assert relative(scale_E, whole.scale_N) < TOLERANCE


# --- what is refused --------------------------------------------------------------------------


def test_a_perturbed_position_outside_the_prompt_is_refused() -> None:
    example = prompts(long_answers=False)[0]
    with pytest.raises(ValueError, match="outside the prompt"):
        batch([example], [len(example.prompt)])


def test_a_hook_point_beyond_the_model_is_refused() -> None:
    target = shared_target("gpt2")
    edits: Mapping[Site, Edit] = {Site(LAYERS, "hook_resid_post"): lambda resid: resid}
    with (
        pytest.raises(UserError, match=f"the model has {LAYERS} blocks"),
        edited(target.model, edits),
    ):
        pass


def test_no_residual_between_parallel_attention_and_mlp() -> None:
    target = shared_target("neox")
    edits: Mapping[Site, Edit] = {Site(0, "hook_resid_mid"): lambda resid: resid}
    with pytest.raises(UserError, match="in parallel"), edited(target.model, edits):
        pass
    laid = batch(prompts(long_answers=False))
    wanted = final_states(shared_target("neox"), laid, {})
    assert torch.equal(final_states(target, laid, {}), wanted)  # no hook was left behind


def test_attention_sinks_are_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UserError, match="sinks"):
        attention.attention(torch.nn.Module(), states, states, states, None, s_aux=states)
