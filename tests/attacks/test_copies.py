"""A search works on copies: what it writes into them changes nothing of what it is held to."""

from __future__ import annotations

import pytest
import torch

from saebench_recovery.interfaces import Attack, Perturbation
from saebench_recovery.perturbations.kinds import KINDS
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens
from tests.problems import Still, problem_of, tiny_setting


class Vandal(Still):
    """Makes room for itself in everything that it is handed, and then returns too much."""

    def search(self, problem: Problem) -> Perturbation:
        found = problem.random(problem.budget_N * 5 if problem.space.has_norm else None, "vandal")
        found = found.rows(torch.arange(problem.size))  # on tensors of its own
        for tensor in (problem.budget_N, problem.goal_N, problem.scale_N):
            tensor.mul_(100.0)
        problem.positions_NP.fill_(3)
        if isinstance(problem.space, SuffixTokens):
            problem.space.layout.at_N.fill_(3)
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_in_place_changes_nothing(kind: str) -> None:
    problem = problem_of(tiny_setting(kind), 2)
    held = [problem.budget_N, problem.goal_N, problem.scale_N, problem.positions_NP]
    before = [tensor.clone() for tensor in held]
    admitted = Attack.run(Vandal(kind), problem)
    assert all((one == other).all() for one, other in zip(held, before, strict=True))
    norm_N = admitted.norm_E()
    if norm_N is not None:
        assert (norm_N <= before[0] * (1 + 1e-5)).all()
