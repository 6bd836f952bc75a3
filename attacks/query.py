"""`query`: random search on objective values alone, for defenses without an honest gradient.

A hill climb on the budget's sphere inside the constraint set, as in Square (arXiv 1912.00049):
a random step is taken back unless it raises the objective, and steps shrink. What failed is tried
in the other direction once: where one way leads down, the other mostly leads up.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from saebench_recovery.attacks._ascent import LOOK_EVERY, MOSTLY
from saebench_recovery.attacks._residual import ResidualAttack
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import total_norm
from saebench_recovery.registry import register_attack

# Length of a step, relative to the delta: on organism's ioi, with 300 queries, longer ones and a
# later end of the long ones recover less.
FIRST, LAST = 0.4, 0.05
FAR = 1e3  # outside the ball by so much, projecting ends on its sphere


@register_attack("query")
class Query(ResidualAttack):
    """Asks for objectives only; a defense can hide its gradient, but not what it does."""

    constrained = True

    class Config(ResidualAttack.Config):
        queries: int = Field(default=300, ge=2, le=100_000, description="objectives asked for")
        margin: float = Field(
            default=1.0, gt=0, description="stop at this share of the clean model's own margin"
        )

    config: Config

    def search(self, problem: Problem) -> ResidualDelta:
        best = _drawn(problem, 0)
        best_N = problem.objective(best)
        queries, goal_N = (
            problem.affordable(self.config.queries),
            self.config.margin * problem.goal_N,
        )
        rows, part = torch.arange(problem.size, device=goal_N.device), problem
        step = _drawn(problem, 1)
        fresh_N = torch.ones_like(goal_N, dtype=torch.bool)
        for query in range(1, queries):
            length = FIRST * (LAST / FIRST) ** (query / queries)
            whole = len(rows) == problem.size  # then nothing has to be picked out
            at, along = (best, step) if whole else (best.rows(rows), step.rows(rows))
            tried = _moved(part, at, along, length)
            objective_N = torch.full_like(best_N, -torch.inf)
            objective_N[rows] = part.objective(tried)
            better_N = (objective_N > best_N) & (best_N < goal_N)
            best_N = torch.where(better_N, objective_N, best_N)
            accepted = better_N[rows]
            for site, values in best.values.items():
                values[rows[accepted]] = tried.values[site][accepted]
            # What failed is turned round once, and then another step is drawn.
            turned_N = fresh_N & ~better_N
            new = rows[~turned_N[rows]]
            drawn = _drawn(problem, query + 1, new)
            for site, values in step.values.items():
                values.neg_()
                values[new] = drawn.values[site]
            fresh_N = ~turned_N
            if query % LOOK_EVERY == 0:
                index = problem.groups(best_N < goal_N)
                if index.numel() == 0:
                    break
                if index.numel() <= MOSTLY * rows.numel():
                    rows, part = index, problem.rows(index)
        return best


def _drawn(problem: Problem, number: int, of: Tensor | None = None) -> ResidualDelta:
    """A random delta of the full budget, of some rows or of all."""
    drawn = problem.random(f"query {number}", of=of)
    assert isinstance(drawn, ResidualDelta)
    return drawn


def _moved(
    problem: Problem, at: ResidualDelta, step: ResidualDelta, length: float
) -> ResidualDelta:
    """The point on the budget's sphere, inside the constraint set, that a step leads to."""
    values: dict[Site, Tensor] = {s: v + length * step.values[s] for s, v in at.values.items()}
    far_N = FAR * problem.pooled_radius_N / total_norm(values).clamp_min(1e-30)
    return replace(
        at, values=problem.project({s: v * far_N[:, None, None] for s, v in values.items()})
    )
