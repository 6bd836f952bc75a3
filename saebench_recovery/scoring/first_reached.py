"""When a search first had what it was after: believed where what it had then is seen to work.

An attack can look at what no budget allows, or write to the trail that its search leaves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.model.trail import Trail
from saebench_recovery.perturbations.problem import Problem


@torch.no_grad()
def first_reached(problem: Problem, trail: Trail) -> Tensor:
    """What each row [N] had cost when its objective was first reached; infinite where it never was.

    The package's own attacks are taken at their word. Of another, what reached the objective is
    held to the space and the budget, and looked at again: a row whose perturbation then does not
    reach it, or was not kept, is infinite, and if its flip recovers, it did so at the end.
    """
    if trail.kept is None:
        return trail.first_N
    seen_N = torch.zeros_like(trail.first_N, dtype=torch.bool)
    for row_N, perturbation in trail.kept:
        part = problem.rows(row_N)
        least_N = part.goal_N if part.matches_distribution else torch.zeros_like(part.goal_N)
        try:
            admitted = part.admit(perturbation)
            if isinstance(admitted, ResidualDelta):  # may have left the space's constraint
                admitted = part.space.project(admitted, part.budget_N)
            seen_N[row_N[part.objective(admitted) > least_N]] = True
        except (TypeError, ValueError):  # it is not of this problem
            continue
    return trail.first_N.masked_fill(~seen_N, torch.inf)
