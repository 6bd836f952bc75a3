"""A task's default margin: a candidate's score less the best other one."""

from __future__ import annotations

import pytest
import torch

from saebench_recovery.interfaces import Output
from tests.tiny import TinyTask

INF = float("inf")
SCORES = {
    "plain": [[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]],
    "tied": [[2.0, 2.0, 1.0], [1.0, 2.0, 2.0]],
    "missing": [[2.0, 1.0, -INF], [0.5, 1.0, -INF]],
    "two": [[2.0, 1.0], [1.0, 1.0]],
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_it_is_the_score_less_the_best_other(scores: list[list[float]]) -> None:
    found = TinyTask().margins(Output((), torch.tensor(scores)))
    expected = [[own - max(row[:i] + row[i + 1 :]) for i, own in enumerate(row)] for row in scores]
    assert found.tolist() == expected


def test_an_only_candidate_always_wins() -> None:
    assert TinyTask().margins(Output((), torch.tensor([[1.0]]))).tolist() == [[INF]]


def test_its_gradient_goes_to_the_answer_and_the_best_other() -> None:
    scores_EC = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -INF]], requires_grad=True)
    objective_E = TinyTask().objective(Output((), scores_EC))
    (grad_EC,) = torch.autograd.grad(objective_E.sum(), scores_EC)
    assert grad_EC.tolist() == [[1, 0, -1], [1, -1, 0]]
