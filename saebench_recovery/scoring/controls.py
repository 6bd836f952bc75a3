"""What stands beside a recovery: nothing, chance, a wrong answer, and how little would do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saebench_recovery.interfaces import Perturbation
from saebench_recovery.perturbations.problem import Problem

BISECTIONS = 6  # of the smallest norm that recovers: a factor of 64, to one part in 64


@dataclass(frozen=True)
class Ladder:
    """The perturbations of E flips at B budgets, towards the right and towards a wrong answer.

    `works_EV` [E, 2 B]: whether the right (wrong) answer is shown; `norm_EV` the smallest norm,
    in the run's unit, to which each can shrink and still work, infinite if it does not;
    `factor_EV` the share of its own norm that this is.
    """

    problem: Problem
    perturbation: Perturbation
    head: int
    works_EV: Tensor
    norm_EV: Tensor
    factor_EV: Tensor

    @property
    def budgets(self) -> int:
        return self.works_EV.shape[1] // 2

    @property
    def injected_E(self) -> Tensor:
        """Bool [E]: a wrong answer is shown at the headline budget."""
        return self.works_EV[:, self.budgets + self.head]

    def headline(self, *, wrong: bool) -> Perturbation:
        """The perturbations at the headline budget."""
        return self.perturbation.rows(self._row(self.head, wrong=wrong))

    def alone(self, *, wrong: bool) -> Problem:
        """The problem's rows at the headline budget."""
        return self.problem.rows(self._row(self.head, wrong=wrong))

    def smallest_norm_E(self, *, wrong: bool) -> Tensor:
        """Smallest norm [E] over all budgets; infinite where none works."""
        return self._side(self.norm_EV, wrong=wrong).amin(1)

    def smallest(self, *, wrong: bool) -> Perturbation | None:
        """The perturbations of that norm; the headline's where none works. None without norms."""
        norm_EB = self._side(self.norm_EV, wrong=wrong)
        works_E = torch.isfinite(norm_EB).any(1)
        place_E = torch.where(works_E, norm_EB.argmin(1), self.head)
        index = self._row(place_E, wrong=wrong)
        factor_E = torch.where(works_E, self.factor_EV.flatten()[index], 1.0)
        space = self.problem.rows(index).space
        return space.shrink(self.perturbation.rows(index), factor_E)

    def smallest_relative_E(self) -> Tensor:
        """Smallest norm [E] relative to the defended residual's; infinite where none works."""
        smallest = self.smallest(wrong=False)
        works_E = torch.isfinite(self.smallest_norm_E(wrong=False))
        if smallest is None:
            return torch.full_like(self.norm_EV[:, 0], torch.inf)
        norm_E = self.alone(wrong=False).space.relative_norm(smallest)
        assert norm_E is not None  # what shrinks has a norm
        return norm_E.masked_fill(~works_E, torch.inf)

    def _side(self, values_EV: Tensor, *, wrong: bool) -> Tensor:
        return values_EV[:, self.budgets :] if wrong else values_EV[:, : self.budgets]

    def _row(self, place: Tensor | int, *, wrong: bool) -> Tensor:
        E, V = self.works_EV.shape
        first_E = torch.arange(E, device=self.works_EV.device) * V
        return first_E + place + self.budgets * wrong


@torch.no_grad()
def climbed(problem: Problem, perturbation: Perturbation, head: int) -> Ladder:
    """Which perturbations work, and how small they may become."""
    V = problem.variants
    works_EV = problem.behaviour(perturbation).view(-1, V)
    first = torch.arange(len(works_EV), device=works_EV.device) * V + head + V // 2
    injecting = problem.rows(first)
    # A wrong answer that the defended model gives by itself is not injected.
    works_EV[:, V // 2 :] &= ~injecting.behaviour(injecting.nothing())[:, None]
    norm_N, factor_N = _smallest_norms(problem, perturbation, works_EV.flatten())
    shape = works_EV.shape
    return Ladder(problem, perturbation, head, works_EV, norm_N.view(shape), factor_N.view(shape))


def _smallest_norms(
    problem: Problem, perturbation: Perturbation, works_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Norm [N] to which each can shrink and still work (inf if it does not), and the factor.

    Where every look costs a generation, only the budgets themselves are compared. Tokens have no
    norm.
    """
    smallest_N = torch.full_like(problem.goal_N, torch.inf)
    factor_N = torch.ones_like(problem.goal_N)
    index = problem.groups(works_N)
    whole_N = problem.norm(perturbation)
    if index.numel() == 0 or whole_N is None:
        return smallest_N, factor_N
    part, delta, works_N = problem.rows(index), perturbation.rows(index), works_N[index]
    low_N, high_N = torch.zeros_like(part.goal_N), torch.ones_like(part.goal_N)
    for _ in range(0 if part.generates else BISECTIONS):
        middle_N = (low_N + high_N) / 2
        shorter = part.space.shrink(delta, middle_N)
        assert shorter is not None  # it has a norm
        enough_N = part.behaviour(shorter)
        high_N = torch.where(enough_N, middle_N, high_N)
        low_N = torch.where(enough_N, low_N, middle_N)
    norm_N = whole_N[index] * high_N
    smallest_N[index] = norm_N.masked_fill(~works_N, torch.inf)
    factor_N[index] = high_N
    return smallest_N, factor_N
