"""`random-direction`: one random direction at the full budget, the floor for every attack."""

from __future__ import annotations

from saebench_recovery.attacks._residual import ResidualAttack

from saebench_recovery.interfaces import Perturbation
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.registry import register_attack


@register_attack("random-direction")
class RandomDirection(ResidualAttack):
    """A Gaussian direction in the null space of the defended latents; no gradient, no search."""

    constrained = True

    def search(self, problem: Problem) -> Perturbation:
        return problem.random("attack")
