"""What a board and a comparison cost, in what must not grow: how often each file is read.

`python -m pytest tests/benchmarks/test_reading.py --benchmark-only` times 5,000 rows.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from saebench_recovery import run
from saebench_recovery.results.compare import compare
from saebench_recovery.results.frame import load_runs
from saebench_recovery.results.leaderboard import build

ROWS = 5_000


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reading")
    return out / run(tasks=["ioi"], attack="random-direction", limit=8, out=out).identity


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file of a run has been read."""
    counted: Counter[Path] = Counter()
    opened = os.open

    def counting(file: str | Path, flags: int) -> int:
        counted[Path(file)] += 1
        return opened(file, flags)

    monkeypatch.setattr(os, "open", counting)
    return counted


def test_a_board_reads_each_file_once(stored: Path, reads: Counter[Path]) -> None:
    build([stored])
    names = ("result.json", "run.json", "records.jsonl", "chunks.jsonl")
    assert reads == {stored / name: 1 for name in names}


def test_a_comparison_reads_each_file_once(
    stored: Path, reads: Counter[Path], tmp_path: Path
) -> None:
    again = Path(shutil.copytree(stored, tmp_path / stored.name))
    compare([stored, again])
    assert set(reads.values()) == {1}
    assert len(reads) == 8


@pytest.mark.parametrize("read", [build, compare, lambda runs: load_runs(runs[0].parent)])
def test_nothing_looks_for_garbage_meanwhile(
    read: Callable[[list[Path]], object], stored: Path, tmp_path: Path
) -> None:
    """With thousands of runs in memory that would take longer than all else."""
    runs = _copies(stored, tmp_path, 2)
    phases: list[str] = []

    def heard(phase: str, info: dict[str, int]) -> None:
        phases.append(phase)

    thresholds = gc.get_threshold()
    gc.collect()
    gc.callbacks.append(heard)
    try:
        gc.set_threshold(50)
        read(runs)
        gc.set_threshold(0)
    finally:
        gc.callbacks.remove(heard)
        gc.set_threshold(*thresholds)
    assert phases.count("start") == 0  # nor at once when it is over


def _copies(stored: Path, place: Path, count: int) -> list[Path]:
    """As many runs of one row, alike but for their identities and seeds."""
    runs = []
    for number in range(count):
        folder = place / sha256(str(number).encode()).hexdigest()[: len(stored.name)]
        shutil.copytree(stored, folder)
        for name in ("result.json", "run.json"):
            text = (folder / name).read_text("utf-8").replace(stored.name, folder.name)
            (folder / name).write_text(text.replace('"seed": 0', f'"seed": {number % 50}'), "utf-8")
        runs.append(folder)
    return runs


@pytest.mark.benchmark(timer=time.process_time)
def test_board(stored: Path, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    runs = _copies(stored, tmp_path, ROWS)
    boards = benchmark.pedantic(build, args=(runs,), rounds=1)
    assert sum(len(group.entries) for board in boards for group in board.groups) == ROWS


@pytest.mark.benchmark(timer=time.process_time)
def test_comparison(stored: Path, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    runs = _copies(stored, tmp_path, ROWS)
    (comparison,) = benchmark.pedantic(compare, args=(runs,), rounds=1)
    assert len(comparison.runs) == ROWS
