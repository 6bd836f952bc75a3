"""`soft-suffix`: a suffix of free embeddings behind the prompt, as an attacker of weights could.

The soft baseline of arXiv 2606.18322 (its OABD suffix, after arXiv 2412.09565) under the active
defense, with the residual attacks' budget, ascent and drift.
"""

from __future__ import annotations

from pydantic import Field
from saebench_recovery.attacks._ascent import ResidualAscent, ascend
from saebench_recovery.attacks._suffix import SuffixAttack

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.suffix_embeddings import SuffixEmbeddings
from saebench_recovery.registry import register_attack


@register_attack("soft-suffix")
class SoftSuffixAscent(SuffixAttack):
    """Gradient ascent on the embeddings of an ordinary token, repeated.

    Later starts displace them at random, by the whole budget.
    """

    space = "embeddings"

    class Config(SuffixAttack.Config):
        steps: int = Field(default=20, ge=1, le=10_000, description="of each ascent")
        lr: float = Field(
            default=0.2, gt=0, le=100, description="first step, relative to the budget"
        )
        margin: float = Field(
            default=1.0, gt=0, description="stop at this share of the clean model's own margin"
        )

    config: Config

    def search(self, problem: Problem) -> ResidualDelta:
        config = self.config
        problem = SuffixEmbeddings.penalised(problem, config.drift_penalty, config.margin)
        ascent = ResidualAscent.Config(steps=config.steps, lr=config.lr, margin=config.margin)
        found = ascend(problem, ascent)
        for number in self.restarts(problem):
            objective_N = problem.objective(found)
            left = problem.groups(objective_N < config.margin * problem.goal_N)
            if left.numel() == 0:
                break
            start = problem.random(f"start {number}").rows(left)
            assert isinstance(start, ResidualDelta)
            part = problem.rows(left)
            other = ascend(part, ascent, start)
            better_N = part.objective(other) > objective_N[left]
            for site, values in other.values.items():
                found.values[site][left[better_N]] = values[better_N]
        return found
