"""`prefill`: one more space and one more attack, and nothing else had to know of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from saebench_recovery.attacks.prefill import Prefill

from saebench_recovery import run
from saebench_recovery.base.catalogue import BUILT_IN
from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Beginning
from saebench_recovery.perturbations.answer_beginning import AnswerBeginning
from saebench_recovery.perturbations.problem import Problem
from tests.problems import organism_setting, problem_of

LENGTH = 16  # of beginnings: no one of the task's is cut
STANDARD: dict[str, Any] = {"target": "organism", "defense": "clamp", "attack": "prefill"}


@cache
def problem() -> Problem:
    setting = organism_setting("beginning", limit=8)
    return problem_of(replace(setting, attack=Prefill(Prefill.Config(length=LENGTH))))


def test_the_command_runs_on_the_embedded_target(tmp_path: Path) -> None:
    (row,) = run(**STANDARD, tasks=["refusal"], limit=16, out=tmp_path).rows
    assert (row.perturbation.kind, row.perturbation.length) == ("beginning", 8)
    assert row.recovery.k > 0.5 * row.recovery.n > 0
    assert row.controls.nothing.k == 0
    assert row.norm.mean is None
    assert row.curve.points == ()
    assert not {"tail-disagrees", "no-suffix"} & set(row.flag_names)


def test_a_task_that_does_not_generate_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'ioi' is not judged by a written answer") as caught:
        run(**STANDARD, tasks=["ioi"], limit=4, out=tmp_path)
    assert "\n" not in str(caught.value)


def test_beginnings_come_from_the_task_written_as_its_answers_begin() -> None:
    space = AnswerBeginning.of(problem())
    words = space.words.decode
    assert len(space.stock) == len(problem()._engine.task.beginnings()) > 3
    assert all(words(ids).startswith(" ") for ids in space.stock)
    assert " Sure, here is how to" in {words(ids) for ids in space.stock}


def test_more_beginnings_show_the_behaviour_at_least_as_often() -> None:
    posed = problem()
    shown = []
    for own in ((1,), (1, 2, 4, 8)):
        found = Prefill(Prefill.Config(own=own, length=LENGTH)).run(posed)
        assert isinstance(found, Beginning)
        shown.append(posed.behaviour(found))
        present_E = found.present_E()
        assert present_E is not None
        assert present_E.all()
    assert (shown[1] >= shown[0]).all()


def test_it_is_one_row_of_the_catalogue() -> None:
    assert BUILT_IN["attack"]["prefill"][0] == f"{Prefill.__module__}:{Prefill.__name__}"
