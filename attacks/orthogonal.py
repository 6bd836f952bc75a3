"""`orthogonal`: recovery in the null space of the defended latents' encoder directions.

Post-intervention recovery (arXiv 2606.18322, section on encoder projection), with the delta
itself kept in the null space instead of only its gradient.
"""

from __future__ import annotations

from saebench_recovery.interfaces import Attack, ResidualDelta
from saebench_recovery.recovery.ascent import AscentConfig, ascend
from saebench_recovery.recovery.problem import Problem
from saebench_recovery.registry import register_attack


@register_attack("orthogonal")
class Orthogonal(Attack):
    """Moves only where no defended latent at the perturbed site can see it."""

    class Config(AscentConfig):
        pass

    config: Config
    constrained = True

    def search(self, problem: Problem) -> ResidualDelta:
        return ascend(problem, problem.constraints, self.config)
