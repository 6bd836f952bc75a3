"""When the ascent stops: rows that are done or that have stalled cost nothing more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from saebench_recovery.attacks import _ascent as ascent
from saebench_recovery.attacks._ascent import ResidualAscent, ascend
from torch import Tensor

from saebench_recovery.model.meter import Meter
from tests.problems import problem_of, tiny_setting

STEPS = ResidualAscent.Config(steps=48)


def found(goal: float) -> tuple[Tensor, Tensor, Tensor]:
    """Objectives [N] at the start and after the ascent, and what each row has cost."""
    meter = Meter()
    problem = problem_of(tiny_setting("residual", budget_unit="relative"), meter=meter)
    problem = replace(problem, goal_N=torch.full_like(problem.goal_N, goal))
    with meter.counting():
        delta = ascend(problem, STEPS)
    spent_N = problem.spent_N().clone()
    return problem.objective(problem.zeros()), problem.objective(delta), spent_N


def test_rows_that_have_stalled_stop_where_more_steps_would_hardly_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before_N, stopped_N, spent_N = found(goal=1e6)
    monkeypatch.setattr(ascent, "STALLED", -1.0)
    _, full_N, most_N = found(goal=1e6)
    assert spent_N.sum() < 0.7 * most_N.sum()
    rise_N = full_N - before_N
    assert (rise_N > 0).all()
    assert (full_N - stopped_N <= 0.03 * rise_N).all()


def test_rows_stop_once_they_are_at_their_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascent, "STALLED", -1.0)
    before_N, after_N, spent_N = found(goal=0.3)
    reached_N = after_N >= 0.3
    assert reached_N.any()
    assert not reached_N.all()
    assert spent_N[reached_N].mean() < 0.7 * spent_N[~reached_N].mean()
    assert (after_N >= before_N).all()
