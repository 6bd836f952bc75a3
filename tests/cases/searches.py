"""Attacks whose trick shows in a run only, each one small; see `tests.cases.expected`.

`tests.cases.searched` runs them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from saebench_recovery.attacks._ascent import ResidualAscent
from torch import Tensor

from saebench_recovery import register_attack
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Example, ResidualDelta, Task
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring import replay
from tests.cases.examined import STEPS


class Short(ResidualAscent):
    """`orthogonal` with few steps, for others to spoil."""

    class Config(ResidualAscent.Config):
        steps: int = STEPS

    constrained = True


class Overlong(Attack):
    """One step up the gradient, several times too long."""

    times = 10.0

    def search(self, problem: Problem) -> ResidualDelta:
        zeros = problem.zeros()
        _, grads = problem.gradient(zeros)
        units = {s: torch.nn.functional.normalize(g, dim=2) for s, g in grads.items()}
        long = {s: self.times * problem.radius[s][:, :, None] * unit for s, unit in units.items()}
        return replace(zeros, values=long)


@register_attack("cheat-flops")
class Flops(Short):
    """Computes its gradients with the model at hand, past the door that counts."""

    def search(self, problem: Problem) -> ResidualDelta:
        return uncounted_ascent(problem)


@register_attack("cheat-mutate")
class Mutate(Overlong):
    """Writes to budget, goal, detector and defense, and returns a delta far too long."""

    def search(self, problem: Problem) -> ResidualDelta:
        problem.budget_N.mul_(1000)
        problem.goal_N.fill_(-1e9)
        engine: Any = problem._engine
        engine.task.behaviour = lambda output: torch.ones(len(output.examples), dtype=torch.bool)
        engine.active.defense.intervene = lambda site, resid_BTD: resid_BTD
        return super().search(problem)


@register_attack("cheat-success")
class Success(Attack):
    """Returns nothing, and reports on the trail that everything is reached."""

    def search(self, problem: Problem) -> ResidualDelta:
        report(problem)
        return problem.zeros()


@register_attack("random-search-null")
class RandomSearch(Attack):
    """Draws steps at random in the null space and keeps those that gain: weak, and honest."""

    constrained = True

    def search(self, problem: Problem) -> ResidualDelta:
        drawn = torch.Generator().manual_seed(problem.seed)
        best, best_N = problem.zeros(), problem.objective(problem.nothing())
        for _ in range(STEPS):
            step = {s: torch.randn(v.shape, generator=drawn) for s, v in best.values.items()}
            tried = problem.project({s: best.values[s] + 0.3 * v for s, v in step.items()})
            found_N = problem.objective(replace(best, values=tried))
            better_N = found_N > best_N
            best_N = torch.where(better_N, found_N, best_N)
            best = replace(best, values=chosen(better_N, tried, best.values))
        return best


@register_attack("x-bos-scale")
class BosScale(Short):
    """Names the first token too, and puts all that it may spend anywhere on the last one."""

    def positions(self, task: Task, example: Example) -> tuple[int, ...]:
        return tuple(range(len(example.prompt)))

    def search(self, problem: Problem) -> ResidualDelta:
        found = super().search(problem)
        last_NP = problem.positions_NP == problem.positions_NP.amax(1, keepdim=True)
        pooled_N11 = problem.pooled_radius_N[:, None, None]
        alone = {
            s: torch.nn.functional.normalize(v * last_NP[:, :, None], dim=2) * pooled_N11
            for s, v in found.values.items()
        }
        return replace(found, values=alone)


@register_attack("x-grad-proj")
class GradientProjected(Attack):
    """Adam on projected gradients, the delta never projected; says that it is constrained."""

    constrained = True

    def search(self, problem: Problem) -> ResidualDelta:
        delta = problem.zeros()
        slow = {s: torch.zeros_like(v) for s, v in delta.values.items()}
        square = {s: torch.zeros_like(v) for s, v in delta.values.items()}
        for step in range(1, 2 * STEPS):
            _, grads = problem.gradient(delta)
            allowed, values = problem.project(grads), dict(delta.values)
            for site, grad in allowed.items():
                slow[site] = 0.9 * slow[site] + 0.1 * grad
                square[site] = 0.999 * square[site] + 0.001 * grad**2
                size = (square[site] / (1 - 0.999**step)).sqrt() + 1e-8
                rate = 0.2 * problem.radius[site][:, :, None] / values[site].shape[2] ** 0.5
                values[site] = values[site] + rate * slow[site] / (1 - 0.9**step) / size
            delta = replace(delta, values=values)
        return delta


@register_attack("x-kill-defense")
class KillDefense(Short):
    """Switches the defense off when it has searched."""

    def search(self, problem: Problem) -> ResidualDelta:
        found = super().search(problem)
        engine: Any = problem._engine
        engine.active.defense.intervene = lambda site, resid_BTD: resid_BTD
        return found


@register_attack("x-no-injection")
class NoInjection(Short):
    """Returns nothing in every second row of a flip, to weaken its own control."""

    def search(self, problem: Problem) -> ResidualDelta:
        found = super().search(problem)
        place_N = torch.arange(problem.size) % problem.variants
        wrong_N = place_N >= problem.variants // 2
        return replace(
            found,
            values={s: v.masked_fill(wrong_N[:, None, None], 0) for s, v in found.values.items()},
        )


@register_attack("x-patch-limits")
class PatchLimits(Short):
    """Leaves the null space, and has every drift found inside the limits."""

    constrained = False

    def search(self, problem: Problem) -> ResidualDelta:
        judge: Any = replay
        judge.within_limits = lambda drift, limits: torch.ones(1, dtype=torch.bool)
        return super().search(problem)


@register_attack("x-self-report")
class SelfReport(Short):
    """Reports before its search that everything is reached, at no cost."""

    def search(self, problem: Problem) -> ResidualDelta:
        report(problem)
        return super().search(problem)


@register_attack("x-unbooked")
class Unbooked(Short):
    """Searches past the door that counts, and then looks once at what it found."""

    def search(self, problem: Problem) -> ResidualDelta:
        found = uncounted_ascent(problem)
        problem.objective(found)
        return found


@register_attack("x-oversize-look")
class OversizeLook(Short):
    """Looks at once at a delta that no budget allows, so that everything is reached at one look."""

    def search(self, problem: Problem) -> ResidualDelta:
        problem.objective(Overlong.search(Overlong(), problem))
        return super().search(problem)


def report(problem: Problem) -> None:
    """Tell the trail that every row has its objective."""
    problem.trail.reach(problem._engine.row_N, torch.ones(problem.size, dtype=torch.bool))


def uncounted_ascent(problem: Problem) -> ResidualDelta:
    """Normalised steps up gradients that nobody was asked for."""
    delta, engine = problem.zeros(), problem._engine
    for _ in range(STEPS):
        leaves = {s: v.detach().requires_grad_() for s, v in delta.values.items()}
        with torch.enable_grad():
            objective_N = engine.objective(replace(delta, values=leaves))
            grads = torch.autograd.grad(objective_N.sum(), list(leaves.values()))
        steps = dict(zip(leaves, grads, strict=True))
        delta = replace(delta, values=stepped(problem, delta, steps))
    return delta


def stepped(
    problem: Problem, delta: ResidualDelta, grads: dict[Site, Tensor]
) -> dict[Site, Tensor]:
    unit = {s: torch.nn.functional.normalize(g, dim=2) for s, g in grads.items()}
    return problem.project(
        {s: v + 0.2 * problem.radius[s][:, :, None] * unit[s] for s, v in delta.values.items()}
    )


def chosen(better_N: Tensor, tried: dict[Site, Tensor], best: Any) -> dict[Site, Tensor]:
    return {s: torch.where(better_N[:, None, None], v, best[s]) for s, v in tried.items()}
