"""The tail forward is the whole model: against transformers' own eager attention, run plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import KINDS, Site
from saebench_recovery.interfaces import Example, ResidualDelta
from saebench_recovery.model import attention, language_model
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import final_states, forward, prefill
from saebench_recovery.model.hooks import Edit, edited
from saebench_recovery.model.plain import Conditions, PlainModel
from saebench_recovery.spec import ThreatModel
from tests.model.setting import (
    LENGTHS,
    POSITIONS,
    TOLERANCE,
    clamp,
    prompts,
    random_delta,
    relative,
)
from tests.plain import plain_logits, plain_model
from tests.tiny import (
    ARCHITECTURES,
    BOS,
    LAYERS,
    VOCABULARY,
    shared_target,
    tiny_model,
)

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


@pytest.mark.parametrize("part", [7, VOCABULARY])
def test_log_probabilities_in_parts_of_the_vocabulary(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of all logits, and so are their gradients; nothing overflows."""
    monkeypatch.setattr(language_model, "PART", part)
    target = shared_target("gpt2")
    hidden_ND = (300 * torch.randn(5, target.embedding.weight.shape[1])).requires_grad_()
    ids_N = torch.tensor([0, 6, 7, VOCABULARY - 1, 13])
    wanted_N = target.logits(hidden_ND).log_softmax(-1).gather(1, ids_N[:, None])[:, 0]
    found_N = target.logprobs_of(hidden_ND, ids_N)
    torch.testing.assert_close(found_N, wanted_N, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(each.sum(), hidden_ND)[0] for each in (found_N, wanted_N)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


tokens = st.integers(3, VOCABULARY - 1)
answers = st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
asked = st.tuples(st.lists(tokens, min_size=1, max_size=6), answers)


@settings(max_examples=10, deadline=None)
@given(drawn=st.lists(asked, min_size=2, max_size=4))
def test_scores_do_not_depend_on_what_else_is_in_the_batch(
    drawn: list[tuple[list[int], list[tuple[int, ...]]]],
) -> None:
    """Answers of one token are compared by their logits beside longer ones, too."""
    target = shared_target("gpt2")
    examples = [Example("", (BOS, *prompt), tuple(cs)) for prompt, cs in drawn]
    together_EC = forward(target, batch(examples), {}).scores_EC
    for example, scores_C in zip(examples, together_EC, strict=True):
        (alone_C,) = forward(target, batch([example]), {}).scores_EC
        torch.testing.assert_close(scores_C[: len(alone_C)], alone_C, rtol=1e-4, atol=1e-4)


def test_nothing_stands_behind_a_prompt_whose_answers_are_single_tokens() -> None:
    """So drift at later positions is undefined, whatever else is in the batch."""
    short, longer = Example("", (BOS, 5), ((6,), (7,))), Example("", (BOS, 5), ((6, 7), (7,)))
    assert batch([short, longer]).mask_RQ.sum(1).tolist() == [2, 2, 4, 3]


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
