"""The smallest norm that recovers, inside the constraint set.

Direction and norm are searched apart (DDN, arXiv 1811.09600): each step turns the delta uphill on
the sphere of its present norm, which then shrinks where the behaviour is shown and grows where it
is not. By how much, the objective's slope along the delta says (as FMN, arXiv 2102.12827, uses the
distance to a linear boundary), up to a share that falls with the steps. What was found is then
shortened along its ray by bisection; a task that generates is bisected by what the model writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import total_norm

STEPS, BISECTIONS = 30, 12
TURN = (1.0, 0.02)  # first and last length of a step, relative to the delta
SHARE = (0.3, 0.02)  # first and last largest change of the norm, relative to it
MOMENTUM = 0.5
SLACK = 5e-4  # of what the margin has to rise: less is lost in the rounding of a replay
FAR = 1e3  # outside a ball by so much, projecting ends on its sphere


def shortest(problem: Problem, steps: int = STEPS, bisections: int = BISECTIONS) -> ResidualDelta:
    """The smallest delta found that shows each row's behaviour; the full budget where none does."""
    state = Trajectory.of(problem)
    steps = problem.affordable(steps)
    for step in range(steps):
        along = step / max(1, steps - 1)
        state.advance(_between(*TURN, along), _between(*SHARE, along))
    return _shortened(problem, state, bisections)


@dataclass
class Trajectory:
    """A delta of norm `norm_N` for each row, and the smallest that has shown the behaviour.

    Norms are in the budget's unit, of which `_unit` gives the length.

    `smallest_N` is infinite where none has; `smallest` then points uphill from zero. The
    behaviour counts as shown where the objective is above `least_N`.
    """

    problem: Problem
    delta: ResidualDelta
    norm_N: Tensor
    momentum: dict[Site, Tensor]
    smallest: ResidualDelta
    smallest_N: Tensor
    least_N: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Uphill from zero, as far as the boundary would be if it were flat."""
        zeros = problem.zeros()
        objective_N, grads = problem.gradient(zeros)
        uphill = _on_sphere(problem, grads, problem.budget_N)
        slope_N = _along(grads, uphill).clamp_min(1e-30)
        length_N = -objective_N.clamp(max=0) / slope_N
        norm_N = torch.minimum(length_N / _unit(problem), problem.budget_N)
        momentum = {s: torch.zeros_like(g) for s, g in grads.items()}
        delta = _on_sphere(problem, uphill.values, norm_N)
        nothing_N = torch.full_like(norm_N, torch.inf)
        return cls(problem, delta, norm_N, momentum, uphill, nothing_N, SLACK * objective_N.abs())

    def advance(self, turn: float, share: float) -> None:
        """One look at the delta, and one step: its direction by `turn`, its norm by a `share`."""
        problem, delta, norm_N = self.problem, self.delta, self.norm_N
        objective_N, grads = problem.gradient(delta)
        beyond_N = objective_N - self.least_N
        self._keep((beyond_N > 0) & (norm_N < self.smallest_N))
        reach_N = norm_N * _unit(problem)
        change_N = -beyond_N / (_along(grads, delta) * reach_N).clamp_min(1e-30)
        self.norm_N = (norm_N * (1 + change_N.clamp(-share, share))).minimum(problem.budget_N)
        scale_N = (1 - MOMENTUM) / total_norm(grads).clamp_min(1e-30)
        for site, grad in grads.items():
            self.momentum[site] = MOMENTUM * self.momentum[site] + scale_N[:, None, None] * grad
        length_N = turn * reach_N / total_norm(self.momentum).clamp_min(1e-30)
        moved = {s: v + length_N[:, None, None] * self.momentum[s] for s, v in delta.values.items()}
        self.delta = _on_sphere(problem, moved, self.norm_N)

    def _keep(self, better_N: Tensor) -> None:
        self.smallest_N = torch.where(better_N, self.norm_N, self.smallest_N)
        better_N11 = better_N[:, None, None]
        values = {
            s: torch.where(better_N11, v, self.smallest.values[s])
            for s, v in self.delta.values.items()
        }
        self.smallest = replace(self.smallest, values=values)


def _shortened(problem: Problem, state: Trajectory, bisections: int) -> ResidualDelta:
    """The shortest on each row's ray that shows the behaviour; at the full budget if none does."""
    found_N = torch.isfinite(state.smallest_N)
    ray = state.smallest.values
    if problem.generates:  # the margin leads the search, and what is written decides
        values = {
            s: torch.where(found_N[:, None, None], v, state.delta.values[s]) for s, v in ray.items()
        }
        ray, high_N = values, problem.budget_N
        found_N = problem.behaviour(_on_sphere(problem, ray, high_N))
    else:
        high_N = torch.where(found_N, state.smallest_N, problem.budget_N)
    index = problem.groups(found_N)
    if index.numel():
        part, high_N = problem.rows(index), high_N.clone()
        values = {s: v[index] for s, v in ray.items()}
        least_N = state.least_N[index]
        high_N[index] = _bisected(part, values, high_N[index], least_N, bisections)
    return _on_sphere(problem, ray, torch.where(found_N, high_N, problem.budget_N))


def _bisected(
    problem: Problem,
    ray: Mapping[Site, Tensor],
    high_N: Tensor,
    least_N: Tensor,
    bisections: int,
) -> Tensor:
    """The smallest norm [N] along the ray, up to `high_N`, that shows the behaviour."""
    low_N = torch.zeros_like(high_N)
    for _ in range(bisections):
        middle_N = (low_N + high_N) / 2
        shorter = _on_sphere(problem, ray, middle_N)
        if problem.generates:
            shown_N = problem.behaviour(shorter)
        else:
            shown_N = problem.objective(shorter) > least_N
        high_N = torch.where(shown_N, middle_N, high_N)
        low_N = torch.where(shown_N, low_N, middle_N)
    return high_N


def _on_sphere(problem: Problem, values: Mapping[Site, Tensor], norm_N: Tensor) -> ResidualDelta:
    """The allowed delta of this norm in a direction."""
    far_N = FAR * norm_N * _unit(problem) / total_norm(values).clamp_min(1e-30)
    far = {s: v * far_N[:, None, None] for s, v in values.items()}
    return problem.space.project(replace(problem.zeros(), values=far), norm_N)


def _unit(problem: Problem) -> Tensor:
    """The length [N] of a delta of norm 1, over all sites and positions together."""
    return problem.pooled_radius_N / problem.budget_N.clamp_min(1e-30)


def _along(grads: Mapping[Site, Tensor], delta: ResidualDelta) -> Tensor:
    """Slope [N] of the objective along a delta."""
    product_N = torch.stack([(g * delta.values[s]).sum((1, 2)) for s, g in grads.items()]).sum(0)
    return product_N / delta.norm_E().clamp_min(1e-30)


def _between(first: float, last: float, along: float) -> float:
    """From the first to the last value along a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * along)) / 2
