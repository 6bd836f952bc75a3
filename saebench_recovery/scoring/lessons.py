"""What an attack on weights learns from: selection examples, with right and with wrong answers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Example, Task
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import forward
from saebench_recovery.perturbations.space import Lessons
from saebench_recovery.targets.target import Target

MOST = 256  # examples of either kind
CHUNK = 64


@torch.no_grad()
def lessons(target: Target, task: Task, active: DefendedModel) -> Lessons:
    """Selection examples that can be learned from with either answer, evenly over the split.

    The wrong answer is the one that the injection control asks of a flip: `Task.wrong_target`.

    Raises:
        UserError: there is none.
    """
    every = list(task.examples(target, "selection"))
    chosen = every[:: -(-len(every) // MOST)]
    right: list[Example] = []
    wrong: list[Example] = []
    for begin in range(0, len(chosen), CHUNK):
        part = chosen[begin : begin + CHUNK]
        batch = target.batch(part)
        output = forward(target, batch, active.edits(batch), pool=task.pool)
        for e, example in enumerate(part):
            with suppress(UserError):  # of an example without a third answer
                wrong.append(replace(task.wrong_target(example, output, e), wrong=None))
                right.append(replace(example, wrong=None))
    if not right:
        raise UserError(f"task {task.name!r} has no selection examples that could be learned from")
    return tuple(right), tuple(wrong)
