"""Rule 7: the controls belong to the harness, random direction and a wrong target alike."""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.attacks.random_direction import RandomDirection
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import (
    Attack,
    Perturbation,
    ResidualDelta,
)
from saebench_recovery.model.batch import batch
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.scoring.reference import injected
from tests.soundness.setting import (
    SITE,
    Seen,
    Zero,
    a_problem,
    clamp,
    fitted,
    flips_of,
    orthogonal,
    run,
    standard,
    unconstrained,
)
from tests.tiny import TinyTask, tiny_target


@pytest.mark.parametrize("attack", [orthogonal(), unconstrained()], ids=type)
def test_random_control_has_the_norm_and_the_constraint_of_the_attack(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Problem, Perturbation]] = []
    random = Problem.random

    def watched(problem: Problem, label: str, like: Perturbation | None = None) -> Perturbation:
        control = random(problem, label, like)
        if label == "control":
            drawn.append((problem, control))
        return control

    monkeypatch.setattr(Problem, "random", watched)
    found = run(clamp(), attack).headline()
    ((problem, control),) = drawn
    assert isinstance(found, ResidualDelta)
    assert isinstance(control, ResidualDelta)
    torch.testing.assert_close(control.norm_E(), found.norm_E(), rtol=1e-4, atol=1e-6)
    inside = Residual.of(problem).constraints[SITE].project(control.values[SITE])
    assert torch.allclose(inside, control.values[SITE], atol=1e-5) == attack.constrained
    assert not torch.allclose(control.values[SITE], found.values[SITE])


class Alike(TinyTask):
    """Its wrong answer is as good as its right one."""

    wrong = (56,)


class ThreeAnswers(TinyTask):
    """Knows no wrong answer of its own."""

    candidates = ((22,), (12,), (11,))
    wrong = None


@pytest.mark.parametrize("task", [TinyTask(), ThreeAnswers()], ids=["given", "chosen"])
def test_wrong_target_is_never_the_right_answer(task: TinyTask) -> None:
    for flip in flips_of(task):
        assert flip.wrong.candidates[0] not in (flip.example.candidates[0],)
        assert set(flip.example.candidates) <= set(flip.wrong.candidates)
        assert flip.wrong.prompt == flip.example.prompt


def test_chosen_wrong_target_is_not_what_the_defended_model_says() -> None:
    task = ThreeAnswers()
    flips, active = flips_of(task), fitted(clamp(), task=task)
    output = whole_pass(active, task, batch([flip.wrong for flip in flips]))
    assert not task.behaviour(output).any()


def test_a_wrong_answer_that_needs_no_injection_is_not_counted_as_injected() -> None:
    """The tiny task's own wrong answer is what the defended model says after some prompts."""
    task, active = TinyTask(), fitted(clamp())
    flips = flips_of(task)
    output = whole_pass(active, task, batch([flip.wrong for flip in flips]))
    said = int(task.behaviour(output).sum())
    assert said > 0
    assert standard("nothing").row.controls.wrong_target.k == 0
    assert standard("unconstrained").row.controls.wrong_target.k <= len(flips) - said


class BeginsAlike(TinyTask):
    """Its right and its wrong answer differ in their second token alone."""

    candidates = ((22, 9), (12, 9))
    wrong = (22, 30)


def test_a_control_that_cannot_succeed_is_null_and_says_why() -> None:
    """Behind the last block the perturbed readout predicts the first token and nothing else."""
    last, earlier = (tiny_target("gpt2", [f"blocks.{i}.hook_resid_post"]) for i in (3, 2))
    behind, before = (
        run(clamp(), orthogonal(), task=BeginsAlike(), target=target, limit=None)
        for target in (last, earlier)
    )
    for name in ("wrong_target", "wrong_target_reference"):
        assert behind.row.measures[name].n == 0
        assert before.row.measures[name].n == before.row.recovery.n > 0
    assert behind.row.recovery.n > 0
    assert all(point.wrong_target.n == 0 for point in behind.row.curve.points)
    assert all(record.smallest_norm_wrong is None for record in behind.records)
    assert "no-injection-control" in behind.row.flag_names
    assert "no-injection-control" not in before.row.flag_names


def test_a_task_without_any_wrong_answer_is_refused() -> None:
    class TwoAnswers(TinyTask):
        wrong = None

    with pytest.raises(UserError, match="no wrong target"):
        run(clamp(), Zero(), task=TwoAnswers())


def test_a_wrong_answer_that_is_right_is_refused() -> None:
    class Right(TinyTask):
        wrong = TinyTask.candidates[0]

    with pytest.raises(UserError, match="no wrong target"):
        run(clamp(), Zero(), task=Right())


def test_recovery_that_overshoots_is_not_base_like() -> None:
    """The output of a large delta is far from the clean one, although the behaviour is back."""
    row = run(clamp(), unconstrained(margin=100.0), budget=5.0).row
    assert row.recovery.rate == 1
    assert row.base_like.k < row.recovery.k


def test_injection_that_is_as_easy_as_recovery_is_flagged() -> None:
    row = run(clamp(), unconstrained(), task=Alike(), budget=1.0).row
    assert row.controls.wrong_target.rate == row.recovery.rate == 1
    assert "injection-as-easy" in row.flag_names


def test_random_direction_that_recovers_as_much_is_flagged() -> None:

    class Drawn(RandomDirection):
        """The same under a name that does not say what it is."""

        name = "drawn"

    row = run(clamp(), Drawn(), budget=2.0).row
    assert row.recovery.k > 0
    assert "random-recovers" in row.flag_names
    assert "random-recovers" not in standard("orthogonal").row.flag_names


def test_what_scoring_has_spent_is_no_cost_of_the_reference() -> None:
    problem = a_problem()
    problem.gradient(problem.zeros())
    allowance = 8 * float(problem.spent_N().amax())
    first = injected(Seen(), problem.afresh(), allowance)
    for _ in range(8):
        problem.gradient(problem.zeros())
    again = injected(Seen(), problem, allowance)
    assert isinstance(first, ResidualDelta)
    assert isinstance(again, ResidualDelta)
    assert torch.equal(first.values[SITE], again.values[SITE])


def reference_found(flops: float | None) -> tuple[Tensor, float]:
    """What the reference finds beside an attack that cost so much a row, and for how many FLOPs.

    Without a number: what it finds by its own settings.
    """
    meter = Meter()
    problem = a_problem().counting_on(meter)
    with meter.counting():
        if flops is None:
            found = Attack.run(Orthogonal(), problem.afresh())
        else:
            found = injected(Seen(), problem, flops)
    assert isinstance(found, ResidualDelta)
    return found.values[SITE], meter.flops / problem.size


@pytest.mark.parametrize("flops", [0.0, 1.0])
def test_the_reference_is_no_weaker_where_the_attack_says_that_it_cost_nothing(
    flops: float,
) -> None:
    """An attack can climb on rows of another budget, and let those bear what it costs."""
    (own, cost), (found, spent) = reference_found(None), reference_found(flops)
    assert torch.equal(found, own)
    assert spent == cost > 0


def test_the_reference_may_spend_what_a_costly_attack_did() -> None:
    _, cost = reference_found(None)
    assert reference_found(10 * cost)[1] > cost
