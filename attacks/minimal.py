"""`minimal`: as little as recovers, inside the constraint set."""

from __future__ import annotations

from pydantic import Field
from saebench_recovery.attacks._residual import ResidualAttack
from saebench_recovery.attacks._shortest import BISECTIONS, STEPS, shortest

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.registry import register_attack


@register_attack("minimal")
class Minimal(ResidualAttack):
    """One trajectory carries what a recovery curve needs: everything above its norm recovers."""

    constrained = True

    class Config(ResidualAttack.Config):
        steps: int = Field(default=STEPS, ge=1, le=10_000, description="before the bisections")
        bisections: int = Field(
            default=BISECTIONS, ge=0, le=30, description="of the norm, along the ray"
        )

    config: Config

    @property
    def shortens(self) -> bool:
        return True

    def shortest(self, problem: Problem) -> ResidualDelta:
        return shortest(problem, self.config.steps, self.config.bisections)

    def search(self, problem: Problem) -> ResidualDelta:
        return self.shortest(problem)
