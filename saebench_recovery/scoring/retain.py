"""Examples of behaviours that a defense should leave alone, and which of them are still right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from saebench_recovery.interfaces import Example, Task
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import forward
from saebench_recovery.selection.latent_scores import CHUNK
from saebench_recovery.targets.phase import visible
from saebench_recovery.targets.target import Target


@dataclass(frozen=True)
class Retain:
    """The retain examples that are scored: how many, and those that the clean model gets right."""

    count: int
    known: Sequence[Example]

    @classmethod
    def of(cls, target: Target, task: Task, bare: DefendedModel) -> Self:
        every = visible(task.examples(target, "retain"), lambda e: str(e.prompt))
        right = _right(every, bare)
        return cls(len(every), [e for e, ok in zip(every, right, strict=True) if ok])

    def kept(self, active: DefendedModel) -> int:
        """How many of the known ones this model gets right."""
        return sum(_right(self.known, active))

    def share_kept(self, active: DefendedModel) -> float | None:
        """Of the known ones the share that this model gets right; None where there is none."""
        return self.kept(active) / len(self.known) if self.known else None


@torch.no_grad()
def _right(examples: Sequence[Example], active: DefendedModel) -> list[bool]:
    """Whether each example's first candidate is the best one."""
    right: list[bool] = []
    for begin in range(0, len(examples), CHUNK):
        batch = active.target.batch(examples[begin : begin + CHUNK])
        output = forward(active.target, batch, active.edits(batch))
        right += (output.scores_EC.argmax(1) == 0).tolist()
    return right
