"""An ascent that begins in bfloat16 is finished, and counted as successful, in float32."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from saebench_recovery.attacks._ascent import ResidualAscent, ascend

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.spec import RunSpec
from tests.problems import problem_of, tiny_setting

STEPS = ResidualAscent.Config(steps=40)


def tiny_problem(*, may_round: bool) -> Problem:
    problem = problem_of(tiny_setting("residual", budget_unit="relative"))
    far = replace(problem, goal_N=torch.full_like(problem.goal_N, 1e6))
    return far.with_engine(lambda engine: replace(engine, may_round=may_round))


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each gradient was of a pass in bfloat16."""
    seen: list[bool] = []
    gradient = Problem.gradient

    def noted(problem: Problem, delta: ResidualDelta) -> object:
        seen.append(problem._engine.rounded)
        return gradient(problem, delta)

    monkeypatch.setattr(Problem, "gradient", noted)
    return seen


def test_it_finds_as_much_and_ends_in_float32(precisions: list[bool]) -> None:
    exact, rounded = tiny_problem(may_round=False), tiny_problem(may_round=True)
    full_N = exact.objective(ascend(exact, STEPS))
    assert not any(precisions)
    precisions.clear()
    found = ascend(rounded, STEPS)
    first_exact = precisions.index(False)
    assert first_exact > 4
    assert not any(precisions[first_exact:])
    assert len(precisions) - first_exact <= STEPS.steps / 5
    rise_N = full_N - exact.objective(exact.zeros())
    assert (rise_N > 0).all()
    assert (full_N - rounded.objective(found) <= 0.05 * rise_N).all()
    for site, projected in rounded.project(found.values).items():
        torch.testing.assert_close(projected, found.values[site], rtol=1e-5, atol=1e-6)


def test_gradients_point_the_same_way_and_the_defense_sees_float32() -> None:
    rounded = tiny_problem(may_round=True).in_bfloat16()
    assert rounded is not None
    dtypes: set[torch.dtype] = set()
    active = rounded._engine.active
    assert active.defense is not None
    intervene = active.defense.intervene

    def noted(site: object, resid: torch.Tensor) -> torch.Tensor:
        dtypes.add(resid.dtype)
        return intervene(site, resid)  # type: ignore[arg-type]

    active.defense.intervene = noted  # type: ignore[method-assign, assignment]
    exact_N, exact = tiny_problem(may_round=False).gradient(rounded.zeros())
    objective_N, grads = rounded.gradient(rounded.zeros())
    assert dtypes == {torch.float32}
    assert not torch.equal(objective_N, exact_N)
    torch.testing.assert_close(objective_N, exact_N, rtol=0.05, atol=0.05)
    for site, grad in grads.items():
        assert grad.dtype == torch.float32
        assert torch.cosine_similarity(grad.flatten(1), exact[site].flatten(1)).min() > 0.99


def test_what_a_rounded_pass_reaches_is_not_counted() -> None:
    problem = tiny_problem(may_round=True)
    problem = replace(problem, goal_N=torch.full_like(problem.goal_N, -1e6))
    rounded = problem.in_bfloat16()
    assert rounded is not None
    won = rounded.with_engine(lambda e: replace(e, task=_Pleased(e.task)))  # type: ignore[arg-type]
    won.gradient(won.zeros())
    assert not problem.trail.first_N.isfinite().any()
    exact = problem.with_engine(lambda e: replace(e, task=_Pleased(e.task)))  # type: ignore[arg-type]
    exact.gradient(exact.zeros())
    assert problem.trail.first_N.isfinite().all()


def test_an_allowance_is_spent_in_float32() -> None:
    assert tiny_problem(may_round=False).in_bfloat16() is None
    assert replace(tiny_problem(may_round=True), allowance=1e9).in_bfloat16() is None


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "rounded"),
    [
        ("auto", "cpu", torch.float32, False),
        ("auto", "cuda:0", torch.float32, True),
        ("auto", "cuda:0", torch.bfloat16, False),  # it searches in what it computes in
        ("bfloat16", "cpu", torch.float32, True),
        ("float32", "cuda:0", torch.float32, False),
    ],
)
def test_by_option_and_by_default_on_a_gpu(
    asked: str, device: str, dtype: torch.dtype, *, rounded: bool
) -> None:
    spec = RunSpec.model_validate({"search_dtype": asked})
    setting = Setting(SimpleNamespace(device=device, dtype=dtype), *[None] * 3, spec)  # type: ignore[arg-type, call-arg]
    assert setting.searches_rounded is rounded


class _Pleased:
    """A judge whose objective is always above zero."""

    def __init__(self, task: object) -> None:
        self._task = task

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)

    def objective(self, output: object) -> torch.Tensor:
        margins: torch.Tensor = self._task.objective(output)  # type: ignore[attr-defined]
        return margins.abs() + 1
