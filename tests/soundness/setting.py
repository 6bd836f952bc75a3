"""The setting in which rows are held to the rules: a tiny target, weak clamps, short searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.attacks.unconstrained import Unconstrained
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.base.catalogue import BUILT_IN
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import (
    Attack,
    Defense,
    Example,
    ResidualDelta,
)
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import valid_flips
from saebench_recovery.spec import RunSpec, ThreatModel
from saebench_recovery.targets.target import Target
from tests.journal import Scored, score
from tests.tiny import SITES, WIDTH, TinyTask, shared_target

DEFENSES = tuple(BUILT_IN["defense"])
THREAT_MODELS: tuple[ThreatModel, ...] = get_args(ThreatModel)
SITE, LATER_SITE = map(Site.parse, SITES)
BUDGET = 0.5
STEPS = {"steps": 15}
# A random model's prompts differ at random: the behaviour lies far off.
STRONG = {"paired-shift": {"strength": 40.0}}
FEW_LATENTS = {"latents": 8}  # of 32 dimensions, so that a null space remains


def defense(name: str, **config: Any) -> Defense:
    made = registry.create("defense", name, {**FEW_LATENTS, **STRONG.get(name, {}), **config})
    assert isinstance(made, Defense)
    return made


def clamp() -> Clamp:
    """Weak enough to leave the defended latents on: their drift has something to refer to."""
    return Clamp(Clamp.Config(**FEW_LATENTS, multiplier=0.3))


def run(
    defense: Defense,
    attack: Attack,
    *,
    task: TinyTask | None = None,
    target: Target | None = None,
    **spec: Any,
) -> Scored:
    """One row on a tiny target; the spec's names are not looked up."""
    settings = {"budget": BUDGET, "limit": 12, **spec}
    target = target or shared_target("gpt2")
    return score(target, task or TinyTask(), defense, attack, RunSpec(**settings))


@cache
def standard(attack: Literal["nothing", "orthogonal", "unconstrained"]) -> Scored:
    """The row of a clamp against an attack with nothing unusual about it."""
    makers: dict[str, Callable[[], Attack]] = {
        "nothing": Zero,
        "orthogonal": orthogonal,
        "unconstrained": unconstrained,
    }
    return run(clamp(), makers[attack](), limit=None)


def orthogonal(**config: Any) -> Orthogonal:
    return Orthogonal(Orthogonal.Config(**STEPS, **config))


def unconstrained(**config: Any) -> Unconstrained:
    return Unconstrained(Unconstrained.Config(**STEPS, **config))


class Zero(Attack):
    """Does nothing, and says that it succeeded."""

    recovered = True

    def search(self, problem: Problem) -> ResidualDelta:
        return problem.zeros()


class Seen(Orthogonal):
    """Keeps the problems that it was handed."""

    def __init__(self) -> None:
        super().__init__(Orthogonal.Config(steps=2))
        self.problems: list[Problem] = []

    def search(self, problem: Problem) -> ResidualDelta:
        self.problems.append(problem)
        return super().search(problem)


def a_problem(threat_model: ThreatModel = "reclamp") -> Problem:
    """The problem that an attack on a clamp is handed."""
    seen = Seen()
    run(clamp(), seen, threat_model=threat_model)
    return seen.problems[0]


class Idle(Clamp):
    """Defends nothing."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD


def evaluation() -> Sequence[Example]:
    return TinyTask().examples(shared_target("gpt2"), "evaluation")


def fitted(
    defense: Defense,
    threat_model: ThreatModel = "reclamp",
    *,
    task: TinyTask | None = None,
    target: Target | None = None,
) -> DefendedModel:
    target = target or shared_target("gpt2")
    defense.fit(target, task or TinyTask())
    return DefendedModel(target, defense, threat_model)


def flips_of(task: TinyTask) -> list[Flip]:
    target, weak = shared_target("gpt2"), clamp()
    weak.fit(target, task)
    setting = Setting(target, task, weak, Zero(), RunSpec())
    _, flips = valid_flips(setting, task.examples(target, "evaluation"))
    assert flips
    return flips


def trace_of(
    active: DefendedModel, examples: Sequence[Example], delta: ResidualDelta | None = None
) -> Trace:
    trace = Trace()
    laid = batch(examples)
    whole_pass(active, TinyTask(), laid, delta, trace, watch=(SITE,))
    return trace


def random_delta(positions: Sequence[Sequence[int]]) -> ResidualDelta:
    positions_EP = torch.tensor(positions)
    drawn = torch.Generator().manual_seed(0)
    values_EPD = torch.randn(*positions_EP.shape, WIDTH, generator=drawn)
    return ResidualDelta({SITE: values_EPD}, positions_EP)


def last_of(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([len(e.prompt) - 1 for e in examples])
