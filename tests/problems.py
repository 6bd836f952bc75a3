"""Problems in every space of perturbations, posed on real valid flips as the scoring poses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.interfaces import Attack, Defense, Example, Output, Perturbation, Task
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples, valid_flips
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import preset
from saebench_recovery.targets.target import Target
from tests.tiny import TinyTask, shared_target

LENGTH = 4  # tokens that an attack may put in
PUT_IN = ("tokens", "embeddings", "beginning")


class Writing(TinyTask):
    """Judged by what the model writes: whether its first letters add up to an even number."""

    def __init__(self) -> None:
        super().__init__()
        self.new_tokens = 3

    def behaviour(self, output: Output) -> Tensor:
        assert output.texts is not None
        return torch.tensor([sum(map(ord, text)) % 2 == 0 for text in output.texts])

    def beginnings(self) -> Sequence[str]:
        return ("yes", "of course")


class Still(Attack):
    """Searches perturbations of one kind and finds none; `constrained` where that can be."""

    constrained = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.space = kind  # type: ignore[misc]  # of the class, but this one is of every kind

    @property
    def length(self) -> int:
        return LENGTH if self.space in PUT_IN else 0

    def search(self, problem: Problem) -> Perturbation:
        return problem.nothing()


def tiny_setting(kind: str, architecture: str = "gpt2", **spec: Any) -> Setting:
    """A fitted clamp on a tiny model, attacked in this space."""
    task = Writing() if kind == "beginning" else TinyTask()
    if kind == "beginning":  # few texts flip
        spec = {"limit": None, **spec}
    return fitted(
        shared_target(architecture), task, Clamp(Clamp.Config(latents=8)), Still(kind), **spec
    )


def organism_setting(kind: str, **spec: Any) -> Setting:
    """The embedded target's own clamp, attacked in this space."""
    name = "refusal" if kind == "beginning" else "ioi"
    plan = preset("organism").tasks[name]
    task = registry.create("task", name, plan.task)
    defense = registry.create("defense", "clamp", plan.defenses["clamp"])
    assert isinstance(task, Task)
    assert isinstance(defense, Defense)
    return fitted(load_target("organism", "cpu"), task, defense, Still(kind), **spec)


def fitted(target: Target, task: Task, defense: Defense, attack: Attack, **spec: Any) -> Setting:
    task.fit(target, target.site_for(task.name, None))
    defense.fit(target, task)
    return Setting(target, task, defense, attack, RunSpec(**{"limit": 12, **spec}))


def problem_of(setting: Setting, flips: int | None = None, meter: Meter | None = None) -> Problem:
    """The problem of a setting's first flips."""
    _, found = valid_flips(setting, evaluation_examples(setting))
    assert found
    return posed(setting, found[:flips], meter or Meter())


def on_prompts(setting: Setting, examples: Sequence[Example]) -> Tensor:
    """Objective [E] of whole prompts under the defense, from the tokens."""
    batch = setting.target.batch(examples)
    output = whole_pass(setting.active, setting.task, batch, distribution=False)
    return setting.task.objective(output)
