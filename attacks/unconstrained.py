"""`unconstrained`: gradient ascent in the budget ball, free to move the defended latents."""

from __future__ import annotations

from saebench_recovery.interfaces import Attack, ResidualDelta
from saebench_recovery.recovery.ascent import AscentConfig, ascend
from saebench_recovery.recovery.problem import Problem
from saebench_recovery.registry import register_attack


@register_attack("unconstrained")
class Unconstrained(Attack):
    """The upper bound that a constrained attack is compared with."""

    class Config(AscentConfig):
        pass

    config: Config

    def search(self, problem: Problem) -> ResidualDelta:
        return ascend(problem, problem.fences(False), self.config)
