"""Searches on tiny targets: flips of a defense, what an attack found on them, and its replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.interfaces import Attack, Defense, Perturbation, ResidualDelta
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.replay import Replay
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples, valid_flips
from saebench_recovery.spec import RunSpec
from tests.tiny import TinyTask, shared_target


def attack(name: str, **config: Any) -> Attack:
    made = registry.create("attack", name, config)
    assert isinstance(made, Attack)
    return made


def weak(name: str) -> Defense:
    """A defense that leaves the latents on, where it can: their drift has something to refer to."""
    config = {"latents": 8, "multiplier": 0.3}
    made = registry.create("defense", name, {"latents": 8} if name == "ablation" else config)
    assert isinstance(made, Defense)
    return made


def flips_under(
    defense: Defense | str, attack: Attack, architecture: str = "gpt2", **spec: Any
) -> tuple[Setting, list[Flip]]:
    """The setting of an attack on a defense (see `weak`), and its valid flips."""
    made = weak(defense) if isinstance(defense, str) else defense
    target = shared_target(architecture)
    given = RunSpec(**{"budget": 0.5, "limit": 16, **spec})
    setting = Setting(target, TinyTask(), made, attack, given)
    examples = evaluation_examples(setting)
    made.fit(target, setting.task)
    _, flips = valid_flips(setting, examples)
    return setting, flips


def searched(setting: Setting, flips: Sequence[Flip]) -> tuple[Problem, Perturbation]:
    """What the attack found for every row of the problem."""
    meter = Meter()
    with meter.counting():
        problem = posed(setting, flips, meter)
        return problem, Attack.run(setting.attack, problem)


def headline(setting: Setting, flips: Sequence[Flip]) -> Tensor:
    """Rows of the right target at the headline budget."""
    return torch.arange(len(flips)) * setting.variants + setting.head


def replayed(setting: Setting, flips: Sequence[Flip], found: Perturbation) -> Replay:
    """The headline perturbations from the tokens, as the row scores them."""
    part = found.rows(headline(setting, flips))
    return Replay(setting, [flip.example for flip in flips], part)


def flat(found: Perturbation) -> Tensor:
    """All coordinates [N, F] of residual deltas."""
    assert isinstance(found, ResidualDelta)
    return torch.cat([v.flatten(1) for v in found.values.values()], 1)
