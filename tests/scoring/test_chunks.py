"""A kill costs a fifth of a task's flips at most, where there are many."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from saebench_recovery.scoring import batch_size
from saebench_recovery.scoring.batch_size import flips_of_a_chunk, flips_that_fit
from saebench_recovery.scoring.check.attack_contract import check_member
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


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("abreast", 0, 1), ("abreast", "two", 1), ("abreast", True, 1), ("length", -1, 0)],
)
def test_numbers_that_size_a_chunk_are_held_to_what_they_may_be(
    name: str, value: object, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, flips = flips_under("clamp", attack("lagrangian", steps=1))
    monkeypatch.setattr(type(setting.attack), name, value)
    (found,) = check_member(setting, flips[:1])
    assert found.level == "error"
    assert f"{name} is {value!r}; allowed: a whole number from {least}" in found.sentence


def test_a_number_that_raises_is_the_plugins_fault() -> None:
    setting, flips = flips_under("clamp", attack("lagrangian", steps=1))

    class Raising(type(setting.attack)):  # type: ignore[misc]
        @property
        def abreast(self) -> int:
            raise RuntimeError("no")

    (found,) = check_member(replace(setting, attack=Raising()), flips[:1])
    assert "abreast raised RuntimeError: no" in found.sentence
