"""Processes find their environment when torch is first imported, and give up their share alone."""

from __future__ import annotations

import os
from collections.abc import Callable
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
