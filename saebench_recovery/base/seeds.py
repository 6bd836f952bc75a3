"""Random numbers that do not depend on how examples are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from torch import Generator


def generators(
    seed: int, label: str, ids: Sequence[str], of: Sequence[int] | None = None
) -> Iterator[Generator]:
    """One for each: from the run's seed, `label`, the id and how often it came before.

    `of` are the places of those that are wanted, by default all.
    """
    wanted, seen = range(len(ids)) if of is None else set(of), dict[str, int]()
    for place, id in enumerate(ids):
        seen[id] = seen.get(id, 0) + 1
        if place not in wanted:
            continue
        key = f"{seed}/{label}/{id}/{seen[id]}"
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        yield Generator().manual_seed(number)
