"""Rule 7: who may perturb more places than another is not ranked beside it."""

from __future__ import annotations

from typing import Any

import pytest
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery.interfaces import Example, Task
from tests.soundness.setting import clamp, run, standard


class OneEarlier(Orthogonal):
    """At places that no setting says."""

    name = "one-earlier"

    def positions(self, task: Task, example: Example) -> tuple[int, ...]:
        return tuple(p - 1 for p in task.positions(example))


@pytest.mark.parametrize("setting", [{"positions": "all"}, {"sites": ["blocks.0.hook_resid_post"]}])
def test_other_places_than_the_tasks_are_told(setting: dict[str, Any]) -> None:
    attack = Orthogonal(Orthogonal.Config(steps=1, **setting))
    assert run(clamp(), attack).row.perturbation.elsewhere


def test_an_attack_cannot_choose_other_places_without_its_row_saying_so() -> None:
    assert run(clamp(), OneEarlier()).row.perturbation.elsewhere


def test_the_tasks_own_places_are_not() -> None:
    assert not standard("orthogonal").row.perturbation.elsewhere
