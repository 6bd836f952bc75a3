"""The worst case over the attacks of a suite: each is tried on what those before left unbroken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saebench_recovery.schema import SuiteMember
from saebench_recovery.scoring.attack_and_score import Scored


@dataclass(frozen=True)
class Attempt:
    """One attack on some of the flips, which `index` numbers; tensors have an entry for each."""

    name: str
    index: Sequence[int]
    scored: Sequence[Scored]
    tensors: Mapping[str, Tensor]
    flops: int

    @property
    def broken(self) -> list[int]:
        """Flips that it recovered inside the constraint limits."""
        return [i for i, s in zip(self.index, self.scored, strict=True) if s.constrained]

    def summary(self) -> SuiteMember:
        return SuiteMember(
            attack=self.name, tried=len(self.index), broken=len(self.broken), flops=self.flops
        )


def unbroken(count: int, attempts: Sequence[Attempt]) -> list[int]:
    """The flips, of `count`, that no attempt has broken."""
    broken = {i for attempt in attempts for i in attempt.broken}
    return [i for i in range(count) if i not in broken]


def worst_case(count: int, attempts: Sequence[Attempt]) -> tuple[list[Scored], dict[str, Tensor]]:
    """Each flip under the attack that did best on it, and those perturbations by attack.

    Best is a recovery inside the limits, then any recovery; ties go to the earlier attack. What a
    flip has cost is the sum over all attacks that were tried on it.
    """
    place = [{i: p for p, i in enumerate(attempt.index)} for attempt in attempts]
    chosen: list[list[int]] = [[] for _ in attempts]
    worst: list[Scored] = []
    for i in range(count):
        tried = [a for a in range(len(attempts)) if i in place[a]]
        found = {a: attempts[a].scored[place[a][i]] for a in tried}
        best = max(tried, key=lambda a: (found[a].constrained, found[a].recovered))
        before = sum(found[a].flops for a in tried if a < best)
        spent = sum(scored.flops for scored in found.values())
        worst.append(
            replace(found[best], flops=spent, flops_first=before + found[best].flops_first)
        )
        chosen[best].append(place[best][i])
    tensors = {
        f"{attempt.name}/{key}": value[torch.tensor(rows)]
        for attempt, rows in zip(attempts, chosen, strict=True)
        if rows
        for key, value in attempt.tensors.items()
    }
    return worst, tensors
