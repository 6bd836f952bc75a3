"""What a board and a comparison cost, in what must not grow: how often each file is read.

`python -m pytest tests/benchmarks/test_reading.py --benchmark-only` times a board of 5,000 rows.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from saebench_recovery import run
from saebench_recovery.results.compare import compare
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
    read = Path.read_bytes

    def counting(file: Path) -> bytes:
        counted[file] += 1
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", counting)
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


@pytest.mark.benchmark(timer=time.process_time)
def test_board(stored: Path, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """As many runs of one row, alike but for their identities and seeds."""
    runs = []
    for number in range(ROWS):
        folder = tmp_path / f"{number:016x}"
        shutil.copytree(stored, folder)
        for name in ("result.json", "run.json"):
            text = (folder / name).read_text("utf-8").replace(stored.name, folder.name)
            (folder / name).write_text(text.replace('"seed": 0', f'"seed": {number % 50}'), "utf-8")
        runs.append(folder)
    boards = benchmark.pedantic(build, args=(runs,), rounds=1)
    assert sum(len(group.entries) for board in boards for group in board.groups) == ROWS
