"""A kill costs a fifth of a task's flips at most, where there are many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from saebench_recovery.scoring import batch_size
from saebench_recovery.scoring.batch_size import flips_of_a_chunk, flips_that_fit
from tests.attacks.setting import attack, flips_under


def on(device: str) -> Any:
    return SimpleNamespace(target=SimpleNamespace(device=device))


@pytest.mark.parametrize(
    ("flips", "room", "of_task", "chunk"),
    [
        (245, 256, 245, 49),
        (127, 21, 127, 19),  # seven chunks are needed anyhow: equal ones
        (60, 256, 60, 12),
        (59, 256, 59, 12),  # with fewer than twelve, steps cost as much
        (8, 256, 8, 8),
        (245, 4, 245, 4),
        (0, 1, 0, 1),
        (111, 256, 245, 37),  # what a suite's last member is tried on, beside what it is a part of
    ],
)
def test_of_a_chunk_are_a_fifth_of_the_tasks_or_what_fits(
    flips: int, room: int, of_task: int, chunk: int
) -> None:
    assert flips_of_a_chunk(on("cpu"), flips, room, of_task) == chunk
    assert flips_of_a_chunk(on("cuda:0"), flips, room, of_task) == room


def test_where_memory_binds_a_chunk_leaves_room_for_starts_abreast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting, flips = flips_under("clamp", attack("lagrangian", steps=1))
    monkeypatch.setattr(batch_size, "CHUNK_BYTES", 2**22)
    assert setting.attack.abreast == 3
    abreast = flips_that_fit(setting, flips)
    monkeypatch.setattr(type(setting.attack), "abreast", 1)
    alone = flips_that_fit(setting, flips)
    assert 1 < alone < batch_size.MAX_ROWS // setting.variants
    assert abreast == alone // 3
