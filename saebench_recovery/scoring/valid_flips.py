"""Which examples there are to recover: base examples that the defense flips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.splits import fraction_of
from saebench_recovery.interfaces import Example, Output, Task
from saebench_recovery.schema import BaseExample
from saebench_recovery.scoring.passes import outputs
from saebench_recovery.scoring.setting import Flip, Setting


def valid_flips(
    setting: Setting, examples: Sequence[Example], defended: Iterable[Output] | None = None
) -> tuple[list[BaseExample], list[Flip]]:
    """The examples that show the behaviour when clean: those left so, and those that are flipped.

    One detector, `Task.behaviour`, judges both. `defended` are the defended model's outputs, where
    they are there already.

    Raises:
        UserError: the model computes NaN or infinity, or an example has no wrong target.
    """
    task = setting.task
    before = outputs(examples, setting.bare, task)
    after = outputs(examples, setting.active, task) if defended is None else defended
    unsuppressed: list[BaseExample] = []
    flips, index = [], 0
    for clean, stopped in zip(before, after, strict=True):
        clean_E, defended_E = task.objective(clean), task.objective(stopped)
        if not (torch.isfinite(clean_E).all() and torch.isfinite(defended_E).all()):
            raise UserError(
                f"the model gives NaN or infinity on task {task.name!r} under "
                f"{setting.defense.name}"
            )
        shown_E, stopped_E = task.behaviour(clean), task.stopped(stopped)
        for e in shown_E.nonzero()[:, 0].tolist():
            example = examples[index + e]
            if not stopped_E[e]:
                unsuppressed.append(BaseExample(id=example.id, cluster=example.cluster))
                continue
            wrong = task.wrong_target(example, stopped, e)
            flips.append(Flip(example, float(clean_E[e]), float(defended_E[e]), wrong))
        index += len(clean_E)
    return unsuppressed, flips


def evaluation_examples(setting: Setting) -> list[Example]:
    """The examples that are attacked.

    Raises:
        UserError: there are none.
    """
    task, target = setting.task, setting.target
    examples = list(task.examples(target, "evaluation"))[: setting.spec.limit]
    if not examples:
        raise UserError(f"task {task.name!r} has no evaluation examples on {target.name}")
    return examples


def expected_by_chance(task: Task, examples: Sequence[Example]) -> float | None:
    """How many examples a model that guesses would get right.

    Known where the detector is the interface's own: the first candidate beats all the others.
    """
    for name in ("behaviour", "objective", "margins"):
        if getattr(type(task), name) is not getattr(Task, name):
            return None
    return sum(1 / len(example.candidates) for example in examples)


def halves(flips: Sequence[Flip]) -> tuple[list[Flip], list[Flip]]:
    """Two halves that share no source item, the same on every run."""
    first = [f for f in flips if _place(f) < 0.5]
    return first, [f for f in flips if _place(f) >= 0.5]


def _place(flip: Flip) -> float:
    return fraction_of(flip.example.cluster or flip.example.id)
