"""A search works on copies: what it writes into them changes nothing of what it is held to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saebench_recovery.interfaces import Attack, Perturbation, ResidualDelta
from saebench_recovery.perturbations.kinds import KINDS
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens
from tests.problems import Still, problem_of, tiny_setting


def held(problem: Problem) -> list[Tensor]:
    """Numbers that what is found is held to."""
    space = problem.space
    each = [space.units, space.norms] if isinstance(space, Residual) else []
    return [problem.budget_N, problem.goal_N, *(t for values in each for t in values.values())]


class Vandal(Still):
    """Makes room for itself in everything that it is handed, and then returns too much."""

    def search(self, problem: Problem) -> Perturbation:
        found = problem.random("vandal").rows(torch.arange(problem.size))  # on tensors of its own
        if isinstance(found, ResidualDelta):
            found = replace(found, values={site: 5 * v for site, v in found.values.items()})
        for tensor in held(problem):
            tensor.mul_(100.0)
        problem.positions_NP.fill_(3)
        if isinstance(problem.space, SuffixTokens):
            problem.space.layout.at_N.fill_(3)
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_in_place_changes_nothing(kind: str) -> None:
    problem = problem_of(tiny_setting(kind), 2)
    watched = [*held(problem), problem.positions_NP]
    before = [tensor.clone() for tensor in watched]
    admitted = Attack.run(Vandal(kind), problem)
    assert all((one == other).all() for one, other in zip(watched, before, strict=True))
    norm_N = problem.norm(admitted)
    if norm_N is not None:
        assert (norm_N <= before[0] * (1 + 1e-5)).all()
