"""Tasks that are evaluated in processes leave what they leave one after the other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.chunks import RunJournal, read_log
from saebench_recovery.results.store import RESULT
from saebench_recovery.runs.run import execute, requested
from saebench_recovery.runs.sharing import Sharing
from saebench_recovery.schema import RunResult
from tests.fake_engine import Engine
from tests.fakes import TASKS
from tests.runs.test_run import contents

ROOT = Path(__file__).parent.parent.parent
ALONE = Sharing()
Fault = Callable[[], None]


class OfLibraryError(Exception):
    """One that cannot be sent to another process, as some of libraries."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise UserError("the model gives NaN")


def break_down() -> None:
    raise OfLibraryError("not enough ", "room")


def pretend(fault: Fault | None) -> None:
    """The fake engine in a process, with a fault in the third chunk of beta."""

    def before(task: str, number: int) -> None:
        if fault is not None and (task, number) == ("beta", 2):
            fault()

    Engine(before).install(lambda mapping, key, value: mapping.update({key: value}))


@dataclass(frozen=True)
class Pretending(Sharing):
    """Two processes of the fake engine."""

    jobs: int | None = 2
    fault: Fault | None = None

    def prepare(self) -> Callable[[], None]:
        return partial(pretend, self.fault)


@pytest.fixture
def pretended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.syspath_prepend(ROOT)  # where a new process finds the tests
    return engine


def work(out: Path, sharing: Sharing, *, keep_text: bool = False) -> RunResult:
    return execute(requested((), {}, ()), out, sharing=sharing, keep_text=keep_text)


@pytest.fixture
def alone(pretended: Engine, tmp_path: Path) -> dict[str, str]:
    made = work(tmp_path / "alone", ALONE, keep_text=True)
    return contents(tmp_path / "alone" / made.identity)


def test_files_are_those_of_one_process(alone: dict[str, str], tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    made = execute(
        requested((), {}, ()),
        tmp_path,
        sharing=Pretending(),
        keep_text=True,
        progress=lambda what, done, total: told.append((what, done / total)),
    )
    assert contents(tmp_path / made.identity) == alone
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert any(what.endswith("of 3 tasks done, pretending") for what, _ in told)


@pytest.mark.parametrize(
    ("fault", "error", "line"),
    [
        (die, UserError, r"^beta: its process ended \(killed by SIGKILL\); what was done is kept"),
        (refuse, UserError, r"^the model gives NaN\n"),
        (break_down, RuntimeError, "not enough room"),
    ],
)
def test_what_is_wrong_in_a_process_ends_the_run_and_costs_no_finished_work(
    fault: Fault,
    error: type[Exception],
    line: str,
    alone: dict[str, str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "parts"
    with pytest.raises(error, match=line):
        work(out, Pretending(fault=fault), keep_text=True)
    (folder,) = out.iterdir()
    kept = len(read_log(folder))
    assert not (folder / RESULT).exists()
    assert [chunk.task for chunk in read_log(folder)].count("beta") == 2

    made = 0
    with pytest.MonkeyPatch.context() as patch:
        append = RunJournal.append

        def counted(journal: RunJournal, *given: object) -> None:
            nonlocal made
            made += journal.folder == folder
            append(journal, *given)  # type: ignore[arg-type]

        patch.setattr(RunJournal, "append", counted)
        work(out, ALONE, keep_text=True)
    assert made == 4 * len(TASKS) - kept
    assert contents(folder) == alone


def test_what_one_process_began_others_go_on_with(
    pretended: Engine, alone: dict[str, str], tmp_path: Path
) -> None:
    def stop(task: str, number: int) -> None:
        if (task, number) == ("beta", 3):
            raise UserError("the model gives NaN")

    pretended.before = stop
    with pytest.raises(UserError, match="NaN"):
        work(tmp_path / "parts", ALONE, keep_text=True)
    made = work(tmp_path / "parts", Pretending(), keep_text=True)
    assert contents(tmp_path / "parts" / made.identity) == alone


def test_real_tasks_cost_and_find_the_same_side_by_side(tmp_path: Path) -> None:
    options = {"tasks": ["tpp", "unlearning"], "limit": 2, "attack_config": {"steps": 2}}
    spec = requested((), options, ())
    made = execute(spec, tmp_path / "alone")
    execute(spec, tmp_path / "together", sharing=Sharing(2))
    alone, together = (contents(tmp_path / name / made.identity) for name in ("alone", "together"))
    assert together == alone
