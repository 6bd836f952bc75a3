"""Projected gradient ascent on a residual perturbation, and random directions beside it.

The projection acts on the perturbation itself after every step. Projecting only its gradient,
as the published code does, lets Adam's per-coordinate scaling leave the null space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Literal

import torch
from pydantic import Field
from saebench_recovery.attacks._residual import ResidualAttack
from torch import Tensor

from saebench_recovery.base.seeds import generators
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.constraints import Constraint
from saebench_recovery.perturbations.problem import Problem

MOMENTUM = 0.75
LOOK_EVERY = 4  # steps between looks at which examples are done: a look costs a device sync
STALLED = 0.003  # on organism's ioi 0.01 loses one recovery of 175, this none
MOSTLY = 0.9  # rows that are done go on with the others until they are more than a tenth


class ResidualAscent(ResidualAttack):
    """Gradient ascent on the residual stream; `constrained` says within which set."""

    class Config(ResidualAttack.Config):
        steps: int = Field(default=50, ge=1, le=10_000)
        lr: float = Field(default=0.2, gt=0, description="first step, relative to the budget")
        objective: Literal["behaviour", "restore"] = Field(
            default="behaviour",
            description="raise the task's margin, or match the clean model's output distribution",
        )
        margin: float = Field(
            default=1.0, gt=0, description="stop at this share of the clean model's own margin"
        )
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

    def fit(self, problem: Problem) -> None:
        fences = problem.fences(self.constrained)
        self._shared = ascend_shared(problem, fences, self.config)

    def search(self, problem: Problem) -> ResidualDelta:
        fences = problem.fences(self.constrained)
        if self.config.shared:
            return spread(problem, fences, self._shared)
        return ascend(problem, fences, self.config)


def ascend(
    problem: Problem, constraints: Mapping[Site, Constraint], config: ResidualAscent.Config
) -> ResidualDelta:
    """Momentum ascent on the objective, kept in the constraint set and the budget ball.

    Each example's step is `lr * budget`, falling to zero along a cosine; its best iterate is
    kept. It stops once its margin reaches `config.margin` times the clean one, or once it has
    stalled: `LOOK_EVERY` steps gained less than the share `STALLED` both of what all steps have
    gained and of what is still missing. Where the problem gives an allowance, the number of steps
    is what it pays for.
    """
    found = problem.zeros()
    goal_N = problem.goal_N * (config.margin if problem.wanted_NV is None else 1)
    rows = torch.arange(problem.size, device=goal_N.device)
    part, fences, values = problem, dict(constraints), dict(found.values)
    best, momentum = dict(values), {s: torch.zeros_like(v) for s, v in values.items()}
    best_N = first_N = seen_N = torch.full_like(goal_N, -torch.inf)
    steps = config.steps
    for step in count():
        delta = ResidualDelta(values, part.positions_NP)
        last = step == steps
        if last:
            objective_N = part.objective(delta)
        else:
            objective_N, grads = part.gradient(delta)
        better_N = (objective_N > best_N) & (best_N < goal_N)
        best_N = torch.where(better_N, objective_N, best_N)
        best = {s: torch.where(better_N[:, None, None], v, best[s]) for s, v in values.items()}
        if step == 0:
            first_N, steps = best_N, problem.affordable(steps)
        if last:
            break
        if step == 1 or step % LOOK_EVERY == LOOK_EVERY - 1:
            least_N = STALLED * torch.minimum(best_N - first_N, goal_N - best_N)
            index = part.groups((best_N < goal_N) & ~(best_N - seen_N < least_N))
            seen_N = best_N
            if index.numel() <= MOSTLY * rows.numel():
                for site, value in best.items():
                    found.values[site][rows] = value
                if index.numel() == 0:
                    return found
                rows, part = rows[index], part.rows(index)
                fences = {s: f.rows(index) for s, f in fences.items()}
                goal_N, best_N, first_N, seen_N = (
                    t[index] for t in (goal_N, best_N, first_N, seen_N)
                )
                values, grads, momentum, best = (
                    {s: t[index] for s, t in group.items()}
                    for group in (values, grads, momentum, best)
                )
        length_N = _rate(config.lr, step, steps) * part.budget_N
        values = _step(values, grads, momentum, length_N)
        values = project(values, fences, part.budget_N)
    for site, value in best.items():
        found.values[site][rows] = value
    return found


def ascend_shared(
    problem: Problem, constraints: Mapping[Site, Constraint], config: ResidualAscent.Config
) -> dict[Site, Tensor]:
    """One direction [V, 1, D] per site and variant that recovers as many examples as it can.

    A route that serves examples it was not fitted on exists in the model; it is not injected
    per example. Its length is relative: at most 1, in units of each example's own budget.
    """
    variants = problem.variants
    empty = {s: v[:variants, :1] for s, v in problem.zeros().values.items()}
    shared, momentum = dict(empty), dict(empty)
    one_V = torch.ones(variants, device=problem.budget_N.device)
    goal_N = problem.goal_N * (config.margin if problem.wanted_NV is None else 1)
    step, steps = 0, config.steps
    while step < steps:
        objective_N, grads = problem.gradient(spread(problem, constraints, shared))
        steps = problem.affordable(steps) if step == 0 else steps
        unmet = (objective_N < goal_N)[:, None, None]
        # Examples that are done have no say, so that the rest are not drowned by easy ones.
        total = {
            s: (g * unmet).sum(1, keepdim=True).reshape(-1, variants, 1, g.shape[2]).sum(0)
            for s, g in grads.items()
        }
        shared = _step(shared, total, momentum, _rate(config.lr, step, steps) * one_V)
        shared = _inside_ball(shared, one_V)
        step += 1
    return shared


def spread(
    problem: Problem, constraints: Mapping[Site, Constraint], shared: Mapping[Site, Tensor]
) -> ResidualDelta:
    """A shared direction [V, 1, D] at every perturbed position, at each example's own budget."""
    there_NP1 = (problem.positions_NP >= 0)[:, :, None].float()
    length_N11 = (problem.budget_N / there_NP1.flatten(1).sum(1).sqrt())[:, None, None]
    repeats = problem.size // problem.variants
    values = {s: u.repeat(repeats, 1, 1) * there_NP1 * length_N11 for s, u in shared.items()}
    return ResidualDelta(project(values, constraints, problem.budget_N), problem.positions_NP)


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
    share = ((1 - MOMENTUM) / _norm(grads).clamp(min=1e-30))[:, None, None]
    for site, grad in grads.items():
        momentum[site] = torch.addcmul(MOMENTUM * momentum[site], share, grad)
    scale = (length_N / _norm(momentum).clamp(min=1e-30))[:, None, None]
    return {site: torch.addcmul(value, scale, momentum[site]) for site, value in values.items()}


def project(
    values: Mapping[Site, Tensor], constraints: Mapping[Site, Constraint], budget_N: Tensor
) -> dict[Site, Tensor]:
    """Into the constraint set, then into the budget ball without leaving the set."""
    inside = {s: constraints[s].project(v) for s, v in values.items()}
    factor_N = _excess(inside, budget_N)
    return {s: constraints[s].shrink(v, factor_N) for s, v in inside.items()}


def _inside_ball(values: Mapping[Site, Tensor], radius_N: Tensor) -> dict[Site, Tensor]:
    factor_N = _excess(values, radius_N)
    return {s: v * factor_N[:, None, None] for s, v in values.items()}


def _excess(values: Mapping[Site, Tensor], radius_N: Tensor) -> Tensor:
    """Factor [N], at most 1, that brings each example's norm over all sites into the ball."""
    return (radius_N / _norm(values).clamp(min=1e-30)).clamp(max=1.0)


def _norm(values: Mapping[Site, Tensor]) -> Tensor:
    """Norm [N] of each example over all sites."""
    each: list[Tensor] = [torch.linalg.vector_norm(v, dim=(1, 2)) for v in values.values()]
    return torch.stack(each).square().sum(0).sqrt()


def random_direction(
    problem: Problem, constraints: Mapping[Site, Constraint], norm_N: Tensor, label: str
) -> ResidualDelta:
    """A Gaussian direction of the given norm per example, inside the constraint set.

    Drawn from the run's seed, the example's id, its place in the problem and `label`, so that
    it does not depend on how examples are batched.
    """
    empty = problem.zeros()
    values = {}
    for site, value in empty.values.items():
        drawn = torch.empty(value.shape)
        label_here = f"{label}/{site}"
        for n, generator in enumerate(generators(problem.seed, label_here, problem.examples)):
            drawn[n] = torch.randn(value.shape[1:], generator=generator)
        values[site] = drawn.to(value.device) * (problem.positions_NP >= 0)[:, :, None]
    # Far outside the ball, so that projecting always ends on its sphere.
    size_N = ResidualDelta(values, empty.positions_EP).norm_E()
    far = {s: v * (1e3 * norm_N / size_N)[:, None, None] for s, v in values.items()}
    return replace(empty, values=project(far, constraints, norm_N))
