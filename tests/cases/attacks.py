"""Attacks that return what they must not, each one small; see `tests.cases.expected`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from saebench_recovery.attacks._ascent import ResidualAscent

from saebench_recovery import register_attack
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense, Example, ResidualDelta, Task
from saebench_recovery.perturbations.problem import Problem


class Climbing(Attack):
    """One step up the gradient, for others to spoil."""

    def step(self, problem: Problem) -> ResidualDelta:
        zeros = problem.zeros()
        _, grads = problem.gradient(zeros)
        return replace(zeros, values=problem.project({s: 1e3 * g for s, g in grads.items()}))


@register_attack("x-far-positions")
class FarPositions(ResidualAscent):
    """Rows at positions that no pass ever reaches."""

    def positions(self, task: Task, example: Example) -> tuple[int, ...]:
        return (len(example.prompt) - 1, len(example.prompt) + 500)


@register_attack("x-after-defense")
class AfterDefense(ResidualAscent):
    """Perturbs a site behind the defense."""

    def sites(self, defense: Defense) -> list[Site]:
        return [Site.parse("blocks.3.hook_resid_post")]


@register_attack("x-no-space")
class NoSpace(Climbing):
    """Names a kind of perturbation that there is not."""

    space = "weights of the moon"

    def search(self, problem: Problem) -> ResidualDelta:
        return self.step(problem)


@register_attack("cheat-nan")
class Nan(Climbing):
    """Returns NaN."""

    def search(self, problem: Problem) -> ResidualDelta:
        zeros = problem.zeros()
        return replace(zeros, values={s: v * float("nan") for s, v in zeros.values.items()})


@register_attack("cheat-rows")
class FewRows(Climbing):
    """Returns one example's perturbation."""

    def search(self, problem: Problem) -> ResidualDelta:
        return self.step(problem).rows(torch.tensor([0]))


@register_attack("cheat-dtype")
class Double(Climbing):
    """Returns float64."""

    def search(self, problem: Problem) -> ResidualDelta:
        delta = self.step(problem)
        return replace(delta, values={s: v.double() for s, v in delta.values.items()})


@register_attack("cheat-tensor")
class PlainTensor(Attack):
    """Returns a plain tensor."""

    def search(self, problem: Problem) -> Any:
        return torch.zeros(problem.size, 1, 8)


@register_attack("cheat-none")
class ReturnsNone(Attack):
    """Forgets to return."""

    def search(self, problem: Problem) -> Any:
        return None


@register_attack("cheat-position")
class OtherPosition(Climbing):
    """Moves the delta to another position than allowed."""

    def search(self, problem: Problem) -> ResidualDelta:
        delta = self.step(problem)
        return replace(delta, positions_EP=torch.zeros_like(delta.positions_EP))


@register_attack("cheat-raises")
class Raises(Attack):
    """Raises an error."""

    def search(self, problem: Problem) -> Any:
        raise RuntimeError("no\nidea")


class OwnTensor(torch.Tensor):
    """A tensor that could say of itself that it is short."""


@register_attack("cheat-own-tensor")
class ReturnsOwnTensor(Climbing):
    """Returns tensors of a class of its own."""

    def search(self, problem: Problem) -> ResidualDelta:
        delta = self.step(problem)
        return replace(delta, values={s: v.as_subclass(OwnTensor) for s, v in delta.values.items()})


class OwnMapping(dict[Site, torch.Tensor]):
    """A mapping that could answer otherwise the second time."""


@register_attack("cheat-own-mapping")
class ReturnsOwnMapping(Climbing):
    """Returns a mapping of a class of its own."""

    def search(self, problem: Problem) -> ResidualDelta:
        delta = self.step(problem)
        return replace(delta, values=OwnMapping(delta.values))
