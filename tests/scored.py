"""Whole rows of one attack on a target, with what scoring wrote kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saebench_recovery.interfaces import Attack, Defense, Perturbation, Task
from saebench_recovery.perturbations.evidence import joined, unpack
from saebench_recovery.schema import Facts, Record, Row
from saebench_recovery.scoring.aggregate import aggregate
from saebench_recovery.scoring.evaluate import evaluate
from saebench_recovery.scoring.journal import Chunk, Written
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target


class Kept:
    """A journal of nothing earlier that keeps its chunks."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def written(self, task: str, attack: str) -> Sequence[Written]:
        return ()

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        self.chunks.append(chunk)


@dataclass(frozen=True)
class Scored:
    """A row, its records in order, and the perturbations of each by part."""

    row: Row
    facts: Facts
    records: tuple[Record, ...]
    parts: Mapping[str, Perturbation]

    @property
    def headline(self) -> Perturbation:
        return self.parts["headline"]


def scored(target: Target, task: Task, defense: Defense, attack: Attack, **spec: Any) -> Scored:
    """One attack scored; the spec's names are not looked up."""
    journal = Kept()
    facts = evaluate(target, task, defense, attack, RunSpec(**spec), journal, lambda *_: None)
    records = tuple(record for chunk in journal.chunks for record in chunk.records)
    tensors = joined([chunk.tensors for chunk in journal.chunks])
    parts = unpack(tensors, {"kind": attack.space})
    return Scored(aggregate(facts, records), facts, records, parts)
