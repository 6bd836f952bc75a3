"""What is timed: a random model of ordinary proportions, and the embedded one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from saebench_recovery import registry
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Perturbation, Task
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.batch_size import flips_that_fit
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples, valid_flips
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import Preset, TaskPreset, preset
from saebench_recovery.targets.target import Target
from tests.tiny import BOS, TinyTask, TinyTokenizer, tiny_dictionary

STEPS = 3
ROOM = 16  # positions for a suffix behind the prompt


@dataclass(frozen=True)
class Workload:
    """Valid flips as the harness would attack them, except that none is ever done.

    Every flip is a prompt with twelve problem rows: six budgets, towards the right answer and
    towards a wrong one. An example-step is one optimizer step on one row.
    """

    setting: Setting
    flips: list[Flip]

    def problem(self, flips: int) -> Problem:
        """The problem of as many flips, prefilled."""
        return posed(self.setting, self.flips[:flips], Meter())

    def search(self, problem: Problem) -> Perturbation:
        """One attack, counted as the harness counts it."""
        with problem._engine.meter.counting():
            return self.setting.attack.search(problem)

    @property
    def chosen(self) -> int:
        """Flips per attack step that the memory holds."""
        return min(len(self.flips), flips_that_fit(self.setting, self.flips))


def random_workload(
    *,
    tokens: int = 128,
    latents: int = 32,
    width: int = 4096,
    flips: int = 128,
    d_model: int = 256,
) -> Workload:
    """A random GPT-2 of 12 layers, clamped at layer 4 of a random SAE."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=d_model,
        n_layer=12,
        n_head=d_model // 32,
        n_positions=tokens + ROOM,
        bos_token_id=BOS,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config)
    return model_workload(model, 4, tokens=tokens, latents=latents, width=width, flips=flips)


def model_workload(
    model: nn.Module, layer: int, *, tokens: int, latents: int, width: int, flips: int = 128
) -> Workload:
    """Random prompts to any model, clamped behind a layer of it by a random JumpReLU SAE."""
    torch.manual_seed(0)
    config = cast(Any, model.config)
    site = Site.parse(f"blocks.{layer}.hook_resid_post")
    plan = Preset(
        description="", model="", saes={}, tasks={TinyTask.name: TaskPreset(site=str(site))}
    )
    device = next(model.parameters()).device
    sae = tiny_dictionary(site, config.hidden_size, latents=width, device=device)
    tokenizer = TinyTokenizer(bos_token_id=config.bos_token_id)
    target = Target("random", model, tokenizer, {site: sae}, plan, [], [])
    defense = Clamp(Clamp.Config(latents=latents))
    defense.latents = {site: sae.defended(torch.arange(latents))}
    prompts = torch.randint(3, config.vocab_size, (flips, tokens - 1)).tolist()
    answers = torch.randint(3, config.vocab_size, (flips, 3)).tolist()

    def flip(i: int) -> Flip:
        right, other, wrong = ((token,) for token in answers[i])
        example = Example(str(i), (config.bos_token_id, *prompts[i]), (right, other))
        return _endless(Flip(example, 0, 0, example.with_candidates(wrong, right, other)))

    return Workload(_setting(target, TinyTask(), defense), [flip(i) for i in range(flips)])


def organism_workload() -> Workload:
    """The embedded target under its default run: `ioi` and `clamp`."""
    target = load_target("organism", "cpu")
    task = registry.create("task", "ioi", {})
    assert isinstance(task, Task)
    defense = registry.create("defense", "clamp", preset("organism").tasks["ioi"].defenses["clamp"])
    assert isinstance(defense, Clamp)
    defense.fit(target, task)
    setting = _setting(target, task, defense)
    _, flips = valid_flips(setting, evaluation_examples(setting))
    return Workload(setting, [_endless(flip) for flip in flips])


def _setting(target: Target, task: Task, defense: Clamp) -> Setting:
    attack = Orthogonal(Orthogonal.Config(steps=STEPS))
    return Setting(target, task, defense, attack, RunSpec(budget=0.25, budget_unit="relative"))


def _endless(flip: Flip) -> Flip:
    """The same flip with a goal that is never reached, so that every step is taken."""
    return replace(flip, clean=float("inf"))
