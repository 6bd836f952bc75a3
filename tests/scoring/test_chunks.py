"""A kill costs a fifth of a task's flips at most, where there are many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from saebench_recovery.scoring.batch_size import flips_of_a_chunk


def on(device: str) -> Any:
    return SimpleNamespace(target=SimpleNamespace(device=device))


@pytest.mark.parametrize(
    ("flips", "room", "chunk"),
    [
        (245, 256, 49),
        (127, 21, 19),  # seven chunks are needed anyhow: equal ones
        (60, 256, 12),
        (59, 256, 12),  # with fewer than twelve, steps cost as much
        (8, 256, 12),
        (245, 4, 4),
        (0, 1, 1),
    ],
)
def test_of_a_chunk_are_a_fifth_or_what_fits(flips: int, room: int, chunk: int) -> None:
    found: Any = [None] * flips
    assert flips_of_a_chunk(on("cpu"), found, room) == chunk
    assert flips_of_a_chunk(on("cuda:0"), found, room) == room
