"""Attacks on weights: what is learned comes from other examples, and the model itself is left."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.quantise import Quantise
from saebench_recovery.attacks.relearn import Relearn, _adapters, _thin_and_wide, _with_adapters
from saebench_recovery.defenses.clamp import Clamp
from torch import nn

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Attack
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.weights import copied, matrices
from saebench_recovery.perturbations.low_rank import RANK, LowRank, LowRankChange
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.rounding import GROUP, Rounded, RoundedWeights, rounded
from saebench_recovery.scoring.retain import Retain
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.spec import RunSpec
from tests.journal import Scored, score
from tests.problems import problem_of, tiny_setting
from tests.tiny import TinyTask, shared_target

STEPS = 16


@cache
def setting(kind: str) -> Setting:
    return tiny_setting(kind, limit=16)


@cache
def problem(kind: str) -> Problem:
    return problem_of(setting(kind), 3)


@cache
def relearned() -> Scored:
    attack = Relearn(Relearn.Config(steps=STEPS, lr=0.01))
    clamp = Clamp(Clamp.Config(latents=8))
    return score(shared_target("gpt2"), TinyTask(), clamp, attack, RunSpec(limit=16))


def test_stages_show_how_recovery_grows() -> None:
    row = relearned().row
    assert [stage.steps for stage in row.stages] == [1, 2, 4, 8, 16]
    assert row.stages[-1].recovery.k == row.recovery.k > row.stages[0].recovery.k
    for one, two in zip(row.stages, row.stages[1:], strict=False):
        assert two.tokens > one.tokens > 0
        assert two.flops > one.flops > 0
    # The right and the wrong answers are both trained.
    assert row.compute.attack.flops >= 2 * row.stages[-1].flops
    assert row.constrained.n == 0  # no limit on drift binds


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_factors_act_on_a_layer_as_those_of_peft(kind: str) -> None:
    model = copied(shared_target(kind).model)
    trained = _with_adapters(model, rank=3, seed=0)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in trained:  # one of two begins at zero
            factor.copy_(torch.randn(factor.shape, generator=drawn))
    layers = dict(_adapters(model))
    assert len(layers) == len(trained) / 2
    for layer in layers.values():
        x = torch.randn(2, 5, layer.in_features, generator=drawn).requires_grad_()
        factors = _thin_and_wide(layer)
        both = []
        for forward in (layer.forward, partial(type(layer).forward, layer)):
            output = forward(x)
            pull = torch.linspace(-1, 1, output.numel()).view_as(output)
            both.append((output, *torch.autograd.grad(output, [x, *factors], pull)))
        torch.testing.assert_close(both[0], both[1])


def test_what_a_stage_keeps_is_found_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[DefendedModel] = []
    share_kept = Retain.share_kept

    def noted(self: Retain, active: DefendedModel) -> float | None:
        asked.append(active)
        return share_kept(self, active)

    monkeypatch.setattr(Retain, "share_kept", noted)
    attack = Relearn(Relearn.Config(steps=STEPS, lr=0.01))
    clamp = Clamp(Clamp.Config(latents=8))
    chunked = score(
        shared_target("gpt2"), TinyTask(), clamp, attack, RunSpec(limit=16, batch_size=2)
    )
    assert chunked.row.examples.valid > 2
    assert len(asked) == len(chunked.row.stages)
    kept = [stage.retained for stage in chunked.row.stages]
    assert kept == [stage.retained for stage in relearned().row.stages]


def test_nothing_that_is_scored_is_learned_from() -> None:
    lessons = LowRank.of(problem("low-rank")).lessons
    prompts = {lesson.prompt for lesson in (*lessons[0], *lessons[1])}
    assert lessons[0]
    assert [one.prompt for one in lessons[0]] == [one.prompt for one in lessons[1]]
    assert prompts.isdisjoint(example.prompt for example in problem("low-rank").examples)


def test_a_change_serves_all_prompts_and_has_a_low_rank() -> None:
    posed = problem("low-rank")
    change = posed.admit(posed.random("test"))
    assert isinstance(change, LowRankChange)
    factors = change.factors
    one = next(iter(factors.up))

    def refused(other: LowRankChange) -> None:
        with pytest.raises((TypeError, ValueError)):
            posed.admit(other)

    each = torch.arange(posed.size)[:, None] % 2
    twice = factors.joined(factors)
    own = replace(change, factors=twice, stage_EK=each)
    posed.admit(replace(own, stage_EK=LowRank.of(posed).side_N[:, None]))
    refused(replace(own, stage_EK=each.roll(1).sort(0).values))
    refused(replace(change, stage_EK=change.stage_EK + 1))

    def with_one(name: str, change_of: Any) -> LowRankChange:
        wide = replace_factor(factors.up, one, name, change_of)
        return replace(change, factors=type(factors)(wide, factors.down, factors.spent))

    refused(with_one(one, lambda up: up.repeat(1, 1, RANK + 1)))
    refused(with_one(one, lambda up: up.double()))
    refused(with_one(one, lambda up: up * torch.nan))
    refused(with_one("lm_head.weight", lambda up: up))


def replace_factor(named: Any, old: str, new: str, change: Any) -> dict[str, torch.Tensor]:
    return {new if k == old else k: change(v) if k == old else v for k, v in named.items()}


def test_the_model_itself_is_left_as_it_was() -> None:
    target, posed = setting("low-rank").target, problem("low-rank")
    before = {name: weight.clone() for name, weight in target.model.named_parameters()}
    posed.behaviour(posed.random("test"))
    Attack.run(Relearn(Relearn.Config(steps=1)), posed)
    now = dict(target.model.named_parameters())
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_to_the_nearest_value(bits: int) -> None:
    weight = torch.randn(5, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    close = rounded(weight, bits)
    rows = weight.reshape(-1, GROUP if bits == 4 else 2 * GROUP)
    step = rows.abs().amax(1) / (2 ** (bits - 1) - 1)
    error = (close - weight).reshape(rows.shape).abs().amax(1)
    assert (error <= step / 2 * (1 + 1e-4)).all()
    assert all(len(row.unique()) <= 2**bits - 1 for row in close.reshape(rows.shape))
    noise = Rounded(bits, seed=3).of("a", weight)
    assert noise is not None
    torch.testing.assert_close((noise - weight).abs(), (close - weight).abs())
    assert not torch.equal(noise, close)


def test_quantise_asks_nothing_of_the_search() -> None:
    found = Attack.run(Quantise(Quantise.Config(bits=8)), problem("rounded"))
    assert isinstance(found, RoundedWeights)
    assert set(found.bits_E.tolist()) == {8}
    with pytest.raises(ValueError, match="3 bits"):
        problem("rounded").admit(replace(found, bits_E=found.bits_E * 0 + 3))


def test_without_peft_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'saebench-recovery\[finetune\]'"):
        Attack.run(Relearn(), problem("low-rank"))


def test_a_model_without_linear_maps_cannot_be_adapted() -> None:
    model: Any = copied(setting("low-rank").target.model)
    for block in model.transformer.h:
        for parent in (block.attn, block.mlp):
            for name in [n for n, module in parent.named_children() if n.startswith("c_")]:
                setattr(parent, name, nn.Identity())
    with pytest.raises(UserError, match="cannot be adapted"):
        matrices(model)
