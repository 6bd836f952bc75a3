"""What scoring writes, kept in memory: rows of tests that have nothing to do with a disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from saebench_recovery.interfaces import Attack, Defense, Perturbation, Task
from saebench_recovery.perturbations.evidence import joined, unpack
from saebench_recovery.schema import Facts, Record, Row
from saebench_recovery.scoring.aggregate import aggregate
from saebench_recovery.scoring.evaluate import attacked
from saebench_recovery.scoring.journal import Chunk, Journal, Written
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.undisturbed import undisturbed
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target


@dataclass
class MemoryJournal:
    """Chunks by task and attack, in the order in which they were written."""

    chunks: dict[tuple[str, str], list[Chunk]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def written(self, task: str, attack: str) -> Sequence[Written]:
        return [
            Written(chunk.records, chunk.attacking, chunk.scoring)
            for chunk in self.chunks.get((task, attack), [])
        ]

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        self.chunks.setdefault((task, attack), []).append(chunk)

    def failure(self, task: str, attack: str) -> str:
        return self.failures.get((task, attack), "")

    def fail(self, task: str, attack: str, line: str) -> None:
        self.failures[task, attack] = line


@dataclass(frozen=True)
class Scored:
    """A task's facts and records, and the row that they add up to."""

    facts: Facts
    journal: MemoryJournal

    @property
    def records(self) -> list[Record]:
        """In the order in which they were written."""
        every = self.journal.chunks.values()
        return [record for chunks in every for chunk in chunks for record in chunk.records]

    @cached_property
    def row(self) -> Row:
        return aggregate(self.facts, self.records)

    def tensors(self, attack: str = "") -> dict[str, Tensor]:
        """The evidence of an attack, by default the only one, as files hold it."""
        return joined([chunk.tensors for chunk in self._chunks(attack)])

    def evidence(self, attack: str = "") -> dict[str, Perturbation]:
        """The same as perturbations, by part."""
        return unpack(self.tensors(attack), self._chunks(attack)[0].metadata)

    def headline(self, attack: str = "") -> Perturbation:
        """The perturbations that were scored, in the order of the records."""
        return self.evidence(attack)["headline"]

    def _chunks(self, attack: str) -> list[Chunk]:
        return self.journal.chunks[self.facts.task, attack or self.facts.attack]


def evaluate(
    target: Target, task: Task, defense: Defense, attack: Attack, spec: RunSpec, journal: Journal
) -> Facts:
    """Fit a defense and run one attack on it."""
    seen = undisturbed(Setting(target, task, defense, attack, spec), quiet)
    return attacked(seen, attack, spec, journal, quiet)


def score(target: Target, task: Task, defense: Defense, attack: Attack, spec: RunSpec) -> Scored:
    """Evaluate into a journal of its own."""
    journal = MemoryJournal()
    facts = evaluate(target, task, defense, attack, spec, journal)
    return Scored(facts, journal)


def quiet(what: str, done: float, total: float) -> None:
    """Progress that nobody looks at."""
