"""Rules 7 and 16: what an attack does beside searching buys nothing, or is named in the row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Perturbation, ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring import replay
from tests.soundness.setting import clamp, run


class Seeing(Orthogonal):
    """Notes the answers that it is asked for."""

    asked: list[tuple[tuple[int, ...], ...]]

    def search(self, problem: Problem) -> ResidualDelta:
        V = problem.variants
        rows = problem.examples
        self.asked = [
            tuple(e.candidates[0] for e in rows[n : n + V]) for n in range(0, len(rows), V)
        ]
        assert all(example.wrong is None for example in rows)
        return super().search(problem)


def test_right_and_wrong_rows_are_shuffled_and_unmarked() -> None:
    attack = Seeing()
    run(clamp(), attack)
    for answers in attack.asked:
        half = len(answers) // 2
        assert len(set(answers)) == 2
        assert len(set(answers[:half])) == 2, "the first half asks for one answer only"


class Sabotage(Orthogonal):
    """Returns nothing in every row whose answer is not the first one's: half of its own control."""

    def search(self, problem: Problem) -> ResidualDelta:
        found = super().search(problem)
        first = problem.examples[0].candidates[0]
        other = torch.tensor([e.candidates[0] != first for e in problem.examples])
        return replace(
            found,
            values={s: v.masked_fill(other[:, None, None], 0) for s, v in found.values.items()},
        )


def test_the_harness_injects_by_itself() -> None:
    honest, sabotaged = run(clamp(), Orthogonal()).row, run(clamp(), Sabotage()).row
    own = honest.controls.wrong_target_reference
    assert own == honest.controls.wrong_target
    assert sabotaged.controls.wrong_target_reference.k >= own.k - 1


class Patching(Orthogonal):
    """Lets every drift pass."""

    def search(self, problem: Problem) -> ResidualDelta:
        replay.within_limits = lambda drift, limits: torch.ones(1, dtype=torch.bool)  # type: ignore[assignment]
        return super().search(problem)


class Disarming(Orthogonal):
    """Switches off the defense that it can reach."""

    def search(self, problem: Problem) -> ResidualDelta:
        defense: Any = problem._engine.active.defense
        defense.intervene = lambda site, resid: resid
        return super().search(problem)


def test_a_patched_judge_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "within_limits", replay.within_limits)  # put back afterwards
    row = run(clamp(), Patching()).row
    assert ("judge-replaced", "invalid") in {(flag.name, flag.level) for flag in row.flags}


def test_a_disarmed_copy_judges_nothing() -> None:
    honest, disarmed = run(clamp(), Orthogonal()).row, run(clamp(), Disarming()).row
    assert disarmed.controls.nothing == honest.controls.nothing
    assert disarmed.constrained.k <= honest.constrained.k


class Unbooked(Orthogonal):
    """Asks for what only the engine may be asked."""

    def search(self, problem: Problem) -> Perturbation:
        return problem.differentiable(problem.zeros())  # type: ignore[attr-defined, no-any-return]


def test_there_is_no_door_around_the_engine() -> None:
    with pytest.raises(UserError, match=r"search .*differentiable"):
        run(clamp(), Unbooked())
