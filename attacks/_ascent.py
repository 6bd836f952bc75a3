"""Projected gradient ascent on a residual perturbation.

The projection acts on the perturbation itself after every step. Projecting only its gradient,
as the published code does, lets Adam's per-coordinate scaling leave the null space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, Self

import torch
from pydantic import Field
from saebench_recovery.attacks._residual import (
    THROUGH,
    ResidualAttack,
    Through,
    differentiated,
)
from saebench_recovery.attacks._shortest import shortest
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import total_norm

MOMENTUM = 0.75
LOOK_EVERY = 4  # steps between looks at which examples are done: a look costs a device sync
STALLED = 0.003  # on organism's ioi 0.01 loses one recovery of 175, this none
FINISHING = 0.2
# Rows that are done stay in the batch, unchanged, until they are more than a tenth of it.
MOSTLY = 0.9


class ResidualAscent(ResidualAttack):
    """Gradient ascent on the residual stream; `constrained` says within which set."""

    class Config(ResidualAttack.Config):
        steps: int = Field(default=50, ge=1, le=10_000, description="of the ascent, at most")
        lr: float = Field(
            default=0.2, gt=0, le=100, description="first step, relative to the budget"
        )
        objective: Literal["behaviour", "restore"] = Field(
            default="behaviour",
            description="raise the task's margin, or match the clean model's output distribution",
        )
        margin: float = Field(
            default=1.0,
            gt=0,
            le=1e6,
            description="stop at this share of the clean model's own margin",
        )
        through: Through = Field(default="defense", description=THROUGH)
        shared: bool = Field(
            default=False,
            description="one delta for all: fitted on half of the flips, scored on the others",
        )

    config: Config
    _shared: Mapping[Site, Tensor]

    @property
    def learns(self) -> bool:
        return self.config.shared

    @property
    def restores(self) -> bool:
        return self.config.objective == "restore"

    @property
    def shortens(self) -> bool:
        return not (self.config.shared or self.restores)

    def shortest(self, problem: Problem) -> ResidualDelta:
        return shortest(self.differentiated(problem))

    def differentiated(self, problem: Problem) -> Problem:
        """The problem whose gradients the search follows."""
        return differentiated(problem, self.config.through)

    def fit(self, problem: Problem) -> None:
        self._shared = ascend_shared(self.differentiated(problem), self.config)

    def search(self, problem: Problem) -> ResidualDelta:
        if self.config.shared:
            return spread(problem, self._shared)
        return ascend(self.differentiated(problem), self.config)


def ascend(
    problem: Problem, config: ResidualAscent.Config, start: ResidualDelta | None = None
) -> ResidualDelta:
    """Momentum ascent on the objective, kept in the constraint set and the budget ball.

    It begins at `start`, by default at zero.

    Each example's step is `lr * budget`, falling to zero along a cosine; its best iterate is
    kept. It stops once its margin reaches `config.margin` times the clean one, or once it has
    stalled: `LOOK_EVERY` steps gained less than the share `STALLED` both of what all steps have
    gained and of what is still missing. Where the problem gives an allowance, the number of steps
    is what it pays for. Where gradients may be of passes in bfloat16, an ascent on those comes
    first, and the share `FINISHING` of the steps is made again in float32 from what it found.
    """
    rounded = problem.in_bfloat16()
    if rounded is not None:
        start = _ascended(rounded, config, start)
        steps = math.ceil(FINISHING * config.steps)
        config = config.model_copy(update={"steps": steps, "lr": FINISHING * config.lr})
    return _ascended(problem, config, start)


def _ascended(
    problem: Problem, config: ResidualAscent.Config, start: ResidualDelta | None
) -> ResidualDelta:
    """The ascent in one precision, see `ascend`."""
    result = problem.zeros()
    climb = Climb.of(problem, config, start or result)
    steps = config.steps
    for step in count():
        last = step == steps
        delta = replace(result, values=climb.values, positions_EP=climb.problem.positions_NP)
        if last:
            climb.keep(climb.problem.objective(delta))
            break
        objective_N, grads = climb.problem.gradient(delta)
        climb.keep(objective_N)
        if step == 0:
            climb.first_N, steps = climb.best_N, problem.affordable(steps)
        if step == 1 or step % LOOK_EVERY == LOOK_EVERY - 1:
            index = climb.unfinished()
            if index.numel() <= MOSTLY * climb.rows.numel():
                climb.store(result)
                if index.numel() == 0:
                    return result
                climb, grads = climb.of_rows(index), {s: g[index] for s, g in grads.items()}
        length_N = _rate(config.lr, step, steps) * climb.problem.pooled_radius_N
        climb.step(grads, length_N)
    climb.store(result)
    return result


@dataclass
class Climb:
    """The rows of a problem that an ascent still works on; those not `going_N` wait to leave."""

    problem: Problem
    rows: Tensor
    going_N: Tensor
    goal_N: Tensor
    values: dict[Site, Tensor]
    best: dict[Site, Tensor]
    momentum: dict[Site, Tensor]
    best_N: Tensor
    first_N: Tensor
    seen_N: Tensor

    @classmethod
    def of(cls, problem: Problem, config: ResidualAscent.Config, start: ResidualDelta) -> Self:
        values = dict(start.values)
        goal_N = problem.goal_N * (1 if problem.matches_distribution else config.margin)
        nothing_N = torch.full_like(goal_N, -torch.inf)
        return cls(
            problem,
            torch.arange(problem.size, device=goal_N.device),
            torch.ones_like(goal_N, dtype=torch.bool),
            goal_N,
            values,
            dict(values),
            {s: torch.zeros_like(v) for s, v in values.items()},
            nothing_N,
            nothing_N,
            nothing_N,
        )

    def keep(self, objective_N: Tensor) -> None:
        """Keep the iterates that are the best so far, of rows that are not done."""
        better_N = self.going_N & (objective_N > self.best_N) & (self.best_N < self.goal_N)
        self.best_N = torch.where(better_N, objective_N, self.best_N)
        self.best = {
            s: torch.where(better_N[:, None, None], v, self.best[s]) for s, v in self.values.items()
        }

    def unfinished(self) -> Tensor:
        """Rows that have neither reached their goal nor stalled by this look.

        Whether one has is its own affair, and for good: what it returns does not depend on when
        the others let it leave the batch.
        """
        least_N = STALLED * torch.minimum(self.best_N - self.first_N, self.goal_N - self.best_N)
        stalled_N = self.best_N - self.seen_N < least_N
        self.going_N = self.going_N & (self.best_N < self.goal_N) & ~stalled_N
        self.seen_N = self.best_N
        return self.problem.groups(self.going_N)

    def step(self, grads: Mapping[Site, Tensor], length_N: Tensor) -> None:
        self.values = self.problem.project(_step(self.values, grads, self.momentum, length_N))

    def store(self, result: ResidualDelta) -> None:
        for site, value in self.best.items():
            result.values[site][self.rows] = value

    def of_rows(self, index: Tensor) -> Self:
        part = replace(self, problem=self.problem.rows(index))
        for name in ("rows", "going_N", "goal_N", "best_N", "first_N", "seen_N"):
            setattr(part, name, getattr(self, name)[index])
        for name in ("values", "best", "momentum"):
            setattr(part, name, {s: t[index] for s, t in getattr(self, name).items()})
        return part


def ascend_shared(problem: Problem, config: ResidualAscent.Config) -> dict[Site, Tensor]:
    """One direction [V, 1, D] per site and variant that recovers as many examples as it can.

    A route that serves examples it was not fitted on exists in the model; it is not injected
    per example. Its length is relative: at most 1, in units of each example's own budget.
    """
    variants = problem.variants
    empty = {s: v[:variants, :1] for s, v in problem.zeros().values.items()}
    shared, momentum = dict(empty), dict(empty)
    one_V = torch.ones(variants, device=problem.budget_N.device)
    goal_N = problem.goal_N * (1 if problem.matches_distribution else config.margin)
    step, steps = 0, config.steps
    while step < steps:
        objective_N, grads = problem.gradient(spread(problem, shared))
        steps = problem.affordable(steps) if step == 0 else steps
        unmet = (objective_N < goal_N)[:, None, None]
        # Examples that are done have no say, so that the rest are not drowned by easy ones.
        total = {
            s: (g * unmet).sum(1, keepdim=True).reshape(-1, variants, 1, g.shape[2]).sum(0)
            for s, g in grads.items()
        }
        shared = _step(shared, total, momentum, _rate(config.lr, step, steps) * one_V)
        factor_V = 1 / total_norm(shared).clamp(min=1)
        shared = {s: v * factor_V[:, None, None] for s, v in shared.items()}
        step += 1
    return shared


def spread(problem: Problem, shared: Mapping[Site, Tensor]) -> ResidualDelta:
    """A shared direction [V, 1, D] at every perturbed position, at each example's own budget."""
    acts_NP = (problem.positions_NP >= 0).float()
    repeats = problem.size // problem.variants
    values = {
        s: u.repeat(repeats, 1, 1) * (problem.radius[s] * acts_NP)[:, :, None]
        for s, u in shared.items()
    }
    return replace(problem.zeros(), values=problem.project(values))


def _rate(first: float, step: int, steps: int) -> float:
    """Step length relative to the budget, falling along a cosine."""
    return first * (1 + math.cos(math.pi * step / steps)) / 2


def _step(
    values: Mapping[Site, Tensor],
    grads: Mapping[Site, Tensor],
    momentum: dict[Site, Tensor],
    length_N: Tensor,
) -> dict[Site, Tensor]:
    """Ascend by `length_N` per example, along a running mean of unit gradients.

    Unit gradients: budgets and margins differ by orders of magnitude between examples. Adam, as
    published, scales each coordinate instead; after projection that no longer points uphill, and
    it stops short of what the budget allows.
    """
    share = ((1 - MOMENTUM) / total_norm(grads).clamp(min=1e-30))[:, None, None]
    for site, grad in grads.items():
        momentum[site] = torch.addcmul(MOMENTUM * momentum[site], share, grad)
    scale = (length_N / total_norm(momentum).clamp(min=1e-30))[:, None, None]
    return {site: torch.addcmul(value, scale, momentum[site]) for site, value in values.items()}
