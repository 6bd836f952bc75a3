"""What scoring writes as it goes, a chunk of flips at a time: a killed run loses only one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from saebench_recovery.schema import Cost, Record, Texts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Some flips of one task under one attack (of a suite, one member), in their order.

    `tensors` and `metadata` are the evidence, as `perturbations.evidence` packs it.
    """

    records: Sequence[Record]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    attacking: Cost
    scoring: Cost
    texts: Sequence[Texts] = ()


@dataclass(frozen=True)
class Written:
    """A chunk that is on disk already."""

    records: Sequence[Record]
    attacking: Cost
    scoring: Cost


class Journal(Protocol):
    """Where chunks go; `results.store` keeps them on disk."""

    def written(self, task: str, attack: str) -> Sequence[Written]:
        """The chunks that an earlier run left, in their order."""
        ...

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        """Keep one more chunk; when this returns, a kill does not lose it."""
        ...

    def failure(self, task: str, attack: str) -> str:
        """The line of a member of a suite that failed; empty where it did not."""
        ...

    def fail(self, task: str, attack: str, line: str) -> None:
        """Keep that a member failed: what comes after it was tried on what it left."""
        ...


@dataclass(frozen=True)
class Unkept:
    """A journal in which a suite finds what its members have done, and that ends with it."""

    _chunks: dict[tuple[str, str], list[Written]] = field(default_factory=dict)
    _failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def every(self) -> Iterator[Written]:
        """All chunks, in the order of the attacks' turns."""
        for chunks in self._chunks.values():
            yield from chunks

    def written(self, task: str, attack: str) -> Sequence[Written]:
        return self._chunks.get((task, attack), [])

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        done = Written(chunk.records, chunk.attacking, chunk.scoring)
        self._chunks.setdefault((task, attack), []).append(done)

    def failure(self, task: str, attack: str) -> str:
        return self._failures.get((task, attack), "")

    def fail(self, task: str, attack: str, line: str) -> None:
        self._failures[task, attack] = line
