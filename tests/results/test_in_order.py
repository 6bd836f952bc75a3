"""Chunks that came in any order are put in that of the tasks, whatever kills the process."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.chunks import RunJournal
from saebench_recovery.results.in_order import in_order
from tests.fake_engine import chunk
from tests.fakes import TASKS
from tests.faults import die_after, die_before, die_torn, disk, fill_up, in_a_process
from tests.runs.test_run import contents

CAME = [("beta", 0), ("alpha", 0), ("gamma", 0), ("alpha", 1), ("beta", 1)]


def journal(folder: Path, came: list[tuple[str, int]]) -> RunJournal:
    folder.mkdir()
    made = RunJournal(folder, keep_texts=True)
    for task, number in came:
        made.append(task, "orthogonal", chunk(task, "orthogonal", number))
    for task in dict.fromkeys(task for task, _ in came):
        made.fail(task, "gcg", "too weak")
    return made


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, str]:
    journal(tmp_path / "expected", sorted(CAME))
    return contents(tmp_path / "expected")


def test_tasks_stand_in_their_order(expected: dict[str, str], tmp_path: Path) -> None:
    ordered = in_order(journal(tmp_path / "came", CAME), TASKS)
    assert contents(tmp_path / "came") == expected
    assert [chunk.task for chunk in ordered.chunks] == [task for task, _ in sorted(CAME)]
    assert in_order(ordered, TASKS) is ordered


def test_lines_of_failures_stand_in_their_order_too(tmp_path: Path) -> None:
    """Also where only they came in another one."""
    made = journal(tmp_path / "came", [])
    for task in ("beta", "alpha"):
        made.fail(task, "gcg", "too weak")
    assert [task for task, _ in in_order(made, TASKS).failures] == ["alpha", "beta"]


@pytest.mark.parametrize("fault", [die_before, die_after, die_torn])
def test_a_kill_leaves_the_old_order_or_the_new_one(
    fault: object, expected: dict[str, str], tmp_path: Path, *, whole: bool
) -> None:
    journal(tmp_path / "came", CAME)
    shutil.copytree(tmp_path / "came", tmp_path / "counted")
    with disk() as calls:
        in_order(RunJournal(tmp_path / "counted"), TASKS)
    killed = 0
    moments = range(0, len(calls), 1 if whole else 7)
    for at in moments:
        out = tmp_path / str(at)
        shutil.copytree(tmp_path / "came", out)

        def doomed(out: Path = out, at: int = at) -> None:
            with disk(at, fault):  # type: ignore[arg-type]
                in_order(RunJournal(out), TASKS)

        child = in_a_process(doomed)
        child.join()
        killed += child.exitcode == -signal.SIGKILL  # near its end it may make a call less
        in_order(RunJournal(out), TASKS)
        assert contents(out) == expected
    assert killed >= len(moments) - 2


def test_a_full_disk_keeps_the_old_order(expected: dict[str, str], tmp_path: Path) -> None:
    made = journal(tmp_path / "came", CAME)
    before = contents(tmp_path / "came")
    with disk(3, fill_up), pytest.raises(UserError, match="No space left on device"):
        in_order(made, TASKS)
    shutil.rmtree(tmp_path / "came" / ".in-order")
    assert contents(tmp_path / "came") == before
    in_order(RunJournal(tmp_path / "came"), TASKS)
    assert contents(tmp_path / "came") == expected
