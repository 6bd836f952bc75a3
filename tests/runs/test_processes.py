"""Processes find their environment when torch is first imported, and give up their share alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from saebench_recovery.runs.processes import THREADS, Processes, Tell, cores

ROOT = Path(__file__).parent.parent.parent


def begin(tell: Tell) -> Callable[[str], tuple[str, int]]:
    """Of a module that imports torch, so that it is imported before anything is called."""

    def answer(piece: str) -> tuple[str, int]:
        tell(f"at {piece}")
        return os.environ["FOR_A_TEST"], torch.get_num_threads()

    return answer


def in_process(folder: Path, tell: Tell) -> Callable[[str], int]:
    """Leaves a file by the number of the process that begins."""
    (folder / str(os.getpid())).touch()
    return lambda piece: os.getpid()


@pytest.mark.parametrize("threads", [1, min(2, cores())])
def test_threads_are_those_of_the_environment(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)  # where a new process finds the tests
    told: list[str] = []
    before = dict(os.environ)
    places = [{THREADS: str(threads), "FOR_A_TEST": "here"}]
    each = Processes[str, tuple[str, int]](places, begin, told.append)
    found = ("here", threads)
    assert list(each.answers([["one"], ["two"]])) == [("one", found), ("two", found)]
    assert told == ["at one", "at two"]
    assert dict(os.environ) == before


def test_what_was_started_ahead_is_used_and_what_was_not_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    each = Processes[str, int]([{}, {}], partial(in_process, tmp_path))
    each.start(2)
    while len(started := {int(file.name) for file in tmp_path.iterdir()}) < 2:
        time.sleep(0.01)
    assert [piece for piece, _ in each.answers([["one"]])] == ["one"]
    assert {int(file.name) for file in tmp_path.iterdir()} == started
    assert not active_children()
    each.start(1)
    each.stop()
    assert not active_children()
