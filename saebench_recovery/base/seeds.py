"""Random numbers that do not depend on how examples are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from torch import Generator


def generators(seed: int, label: str, ids: Sequence[str]) -> Iterator[Generator]:
    """One for each: from the run's seed, `label`, the id and how often it came before."""
    seen: dict[str, int] = {}
    for id in ids:
        seen[id] = seen.get(id, 0) + 1
        key = f"{seed}/{label}/{id}/{seen[id]}"
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        yield Generator().manual_seed(number)
