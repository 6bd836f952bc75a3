"""A verification says the same whatever number of processes it is divided among."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saebench_recovery import run
from saebench_recovery.runs.processes import Death
from saebench_recovery.runs.sharing import Sharing
from saebench_recovery.runs.verify import divide
from saebench_recovery.runs.verify.divide import recomputed
from saebench_recovery.runs.verify.recompute import Piece, Recomputed
from saebench_recovery.runs.verify.report import Findings
from saebench_recovery.runs.verify.verify import verify

TASKS = ("alpha", "beta", "gamma")


@dataclass
class Work:
    """What recomputes nothing, finds a fault in every piece, and replays one flip of a chunk.

    A search is of three flips.
    """

    stored: Any
    chosen: dict[str, set[str]]
    again: dict[str, set[str]]

    def __call__(self, piece: Piece) -> Recomputed:
        findings = Findings()
        if piece.search:
            findings.could_not_check(f"{piece.task} search", "made up")
            return Recomputed(findings, searched=3)
        findings.could_not_check(f"{piece.task} {piece.chunk}", "made up")
        return Recomputed(findings, () if piece.chunk is None else (f"flip {piece.chunk}",))


@dataclass
class Backwards:
    """Processes that answer in another order, of which the one at `dying` ends."""

    places: Any
    begin: Any
    dying: Piece | None = None

    def answers(self, groups: Sequence[Sequence[Piece]]) -> Iterator[tuple[Piece, object]]:
        work = self.begin(lambda what: None)
        for group in reversed(groups):
            for piece in reversed(group):
                yield piece, Death("killed by SIGKILL") if piece == self.dying else work(piece)


def work(folder: Path) -> Any:
    chunks = [(SimpleNamespace(task=task, evidence=""), ()) for task in (*TASKS, *TASKS)]
    stored = SimpleNamespace(
        folder=folder, chunks=chunks, facts={}, state=SimpleNamespace(facts=())
    )
    chosen, again = ({task: set(ids) for task in TASKS} for ids in (("flip 0", "flip 1"), "abc"))
    return Work(stored, chosen, again)


Told = list[tuple[str, float]]


def found(folder: Path, jobs: int) -> tuple[tuple[int, int], list[str], Told]:
    """Flips, what could not be checked, and how many flips were told of as done."""
    findings, told = Findings(), Told()
    flips = recomputed(
        work(folder), Sharing(jobs), findings, lambda what, done, total: told.append((what, done))
    )
    return flips, [part.what for part in findings.unchecked], told


def test_the_order_of_answers_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = found(tmp_path, 1)
    assert alone[0] == (6, 9)
    assert alone[1][:5] == ["alpha None", "alpha 0", "alpha 3", "alpha search", "beta None"]
    steps = ("recomputing", 0), ("recomputing", 0), ("recomputing", 1), ("searching again", 2)
    assert tuple(alone[2][:5]) == (*steps, ("recomputing", 5))
    monkeypatch.setattr(divide, "Processes", {(Piece, Recomputed): Backwards})
    flips, unchecked, told = found(tmp_path, 3)
    assert (flips, unchecked) == alone[:2]
    done = [done for _, done in told]
    assert (done[0], done[-1]) == (0, 15)
    assert done == sorted(done)


def test_a_process_that_dies_leaves_its_piece_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(places: Any, begin: Any) -> Backwards:
        return Backwards(places, begin, Piece("beta", 1))

    monkeypatch.setattr(divide, "Processes", {(Piece, Recomputed): dying})
    flips, unchecked, _ = found(tmp_path, 2)
    assert flips == (5, 9)
    assert unchecked[4:8] == ["beta None", "beta", "beta 4", "beta search"]


@pytest.mark.whole
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    made = run(tasks=["ioi", "unlearning"], limit=4, out=tmp_path)
    folder = tmp_path / made.identity
    assert verify(folder, jobs=2) == verify(folder)
    file = next((folder / "evidence").iterdir())
    file.write_bytes(file.read_bytes()[:-8])
    spoilt = verify(folder, jobs=2)
    assert spoilt == verify(folder)
    assert spoilt.exit_code == 1
