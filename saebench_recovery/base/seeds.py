"""Random numbers that do not depend on how examples are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Generator


class Identified(Protocol):
    @property
    def id(self) -> str: ...


def generators(seed: int, label: str, examples: Sequence[Identified]) -> Iterator[Generator]:
    """One for each: from the run's seed, `label`, the example's id and how often it came before."""
    seen: dict[str, int] = {}
    for example in examples:
        seen[example.id] = seen.get(example.id, 0) + 1
        key = f"{seed}/{label}/{example.id}/{seen[example.id]}"
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        yield Generator().manual_seed(number)
