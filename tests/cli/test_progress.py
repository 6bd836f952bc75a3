"""What a user is told while work goes on."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

from saebench_recovery import run
from saebench_recovery.base.progress import part, seldom
from saebench_recovery.cli import progress
from saebench_recovery.cli.progress import Told, progress_bar
from saebench_recovery.model.meter import counted, ticking
from tests.fake_engine import CHUNKS, Engine
from tests.fakes import TASKS


def test_tasks_are_parts_of_one_job(engine: Engine, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    run(out=tmp_path, progress=lambda what, done, total: told.append((what, done / total)))
    (first, _), *others = told
    assert first == "loading"
    number = len(TASKS)
    assert [what for what, _ in others] == [
        f"task {i + 1} of {number}, pretending" for i in range(number) for _ in range(CHUNKS)
    ]
    shares = [share for _, share in others]
    assert shares == pytest.approx([i / (number * CHUNKS) for i in range(number * CHUNKS)])


def test_a_part_of_a_part() -> None:
    told: list[tuple[str, float, float]] = []
    outer = part(lambda *said: told.append(said), 0.5, 1, "task 2 of 2, ")
    part(outer, 0.25, 0.75, "attack 2 of 3, ")("clamp", 1, 2)
    assert told == [("task 2 of 2, attack 2 of 3, clamp", 0.75, 1)]


def test_few_of_many_words_and_always_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[float]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = seldom(lambda what, done, total: told.append(done))
    for step in range(11):
        now[0] = step / 10
        progress("working", step, 10)
    assert told == [0, 5, 10]
    progress("working", 3, 10)
    progress("working", 10, 10)
    assert told == [0, 5, 10, 10]


def test_each_pass_of_the_model_is_told() -> None:
    model, passes = nn.Linear(2, 2), list[int]()
    with ticking(passes.append):
        for _ in range(3):
            counted(model, lambda: model(torch.ones(5, 2)), kind="x", rows=5, token_layers=5)
    counted(model, lambda: model(torch.ones(5, 2)), kind="x", rows=5, token_layers=5)
    assert passes == [1, 2, 3]


def test_rate_and_time_left_are_of_what_this_process_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told = Told()
    assert told.line() == "starting"
    now[0] = 60.0
    told("task 3 of 4, ioi", 0.5, 1)  # an interrupted run goes on with its third task
    assert told.line() == "task 3 of 4, ioi"
    now[0] = 180.0
    told("task 3 of 4, ioi", 0.6, 1)
    assert told.line() == "task 3 of 4, ioi; 60%, 5.0% a minute, 8 min left"
    told("task 4 of 4, ioi", 0.99, 1)
    assert told.line().endswith("2 s left")


def test_on_a_pipe_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Event()

    class Listening(io.StringIO):
        def flush(self) -> None:
            if "working" in self.getvalue():
                heard.set()

    written = Listening()
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(sys, "stderr", written)
    with progress_bar(wanted=True) as told:
        assert told is not None
        told("working", 1, 4)
        assert heard.wait(60)
    assert "working\n" in written.getvalue()
    with progress_bar(wanted=False) as told:
        assert told is None


def test_on_a_terminal_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(wanted=True) as told:
        assert told is not None
        told("task 2 of 4, [ioi]", 1, 4)
    assert "task 2 of 4, [ioi]" in written.getvalue()
