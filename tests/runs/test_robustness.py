"""Runs that are killed, have no room or are not alone end bit-identical, with nothing left over.

By default a few times with the instant engine. `pytest --whole tests/runs/test_robustness.py` does
all of it on real runs: 20 kills at random moments, 10 aimed at writes, 5 full disks, 5 slow second
writers, each continuing a run from nothing or beside a complete one that `--force` repeats. A git
commit is part of a result, so make none meanwhile.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.chunks import RunJournal, read_log
from saebench_recovery.runs.run import run
from saebench_recovery.schema import RunResult
from saebench_recovery.targets import loading
from saebench_recovery.targets.loading import load_target
from tests.faults import Fault, die_after, die_before, die_torn, disk, fill_up, in_a_process
from tests.runs.test_run import contents

Work = Callable[..., RunResult]
FATAL = (die_before, die_after, die_torn)


@dataclass
class Job:
    """A run that can be repeated anywhere, what it leaves, and how long it takes."""

    work: Work
    identity: str
    first: Path
    seconds: float

    @cached_property
    def expected(self) -> dict[str, str]:
        return contents(self.first / self.identity)

    def begin(self, out: Path, *, force: bool) -> None:
        """A complete run where one is to be repeated."""
        if force:
            shutil.copytree(self.first, out)

    def check_finished(self, out: Path) -> None:
        """All there, bit for bit, and nothing else."""
        assert [path.name for path in out.iterdir()] == [self.identity]
        assert contents(out / self.identity) == self.expected

    def check_cut_off(self, out: Path) -> None:
        """What a kill left is finished as if nothing had been, and no chunk is made twice."""
        kept = len(read_log(out / self.identity))
        made = 0
        with pytest.MonkeyPatch.context() as patch:
            append = RunJournal.append

            def counted(*given: Any) -> None:
                nonlocal made
                made += 1
                append(*given)

            patch.setattr(RunJournal, "append", counted)
            self.work(out)
        # None at all where the old result was only moved aside.
        assert made in (0, self.expected["chunks.jsonl"].count("\n") - kept)
        self.check_finished(out)


@pytest.fixture
def job(
    whole: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Job:
    options: dict[str, Any] = {}
    if whole:
        target = load_target("organism", "cpu")
        monkeypatch.setattr(loading, "load_target", lambda *_, **__: target)
        steps = {"steps": 2}
        options = {"tasks": ["ioi"], "limit": 4, "batch_size": 1, "attack_config": steps}
    else:
        request.getfixturevalue("engine")

    def work(out: Path, **more: Any) -> RunResult:
        return run(out=out, **options, **more)

    started = time.monotonic()
    identity = work(tmp_path / "first").identity
    seconds = time.monotonic() - started
    return Job(work, identity, tmp_path / "first", seconds)


def test_kills_at_random_moments(job: Job, whole: bool, tmp_path: Path) -> None:
    drawn = random.Random(0)
    for number in range(20 if whole else 3):
        out, force = tmp_path / str(number), number % 2 == 1
        job.begin(out, force=force)
        child = in_a_process(lambda out=out, force=force: job.work(out, force=force))  # type: ignore[misc]
        time.sleep(drawn.uniform(0, job.seconds))
        child.kill()
        child.join()
        job.check_cut_off(out)


def test_kills_aimed_at_writes(job: Job, whole: bool, tmp_path: Path) -> None:
    drawn = random.Random(1)
    for number in range(10 if whole else 3):
        out, force = tmp_path / str(number), number % 2 == 1
        job.begin(out, force=force)
        at, fault = drawn.randrange(calls_of(job, tmp_path, force=force)), FATAL[number % 3]
        while died_at(job, out, at, fault, force=force) == 0:
            # It made fewer calls than the run that counted them.
            shutil.rmtree(out)
            job.begin(out, force=force)
            at //= 2
        job.check_cut_off(out)


def test_full_disks(job: Job, whole: bool, tmp_path: Path) -> None:
    drawn = random.Random(2)
    for number in range(5 if whole else 2):
        out, force = tmp_path / str(number), number % 2 == 1
        job.begin(out, force=force)
        before = contents(out / job.identity)
        at = drawn.randrange(calls_of(job, tmp_path, force=force))
        try:
            with disk(at, fill_up):
                job.work(out, force=force)
        except UserError as error:
            assert "No space left on device" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            assert not force or contents(out / job.identity) == before
        job.check_cut_off(out)


def test_slow_second_writers(job: Job, whole: bool, tmp_path: Path) -> None:
    drawn = random.Random(3)
    for number in range(5 if whole else 2):
        out, force = tmp_path / str(number), number % 2 == 1

        def slow(*, out: Path = out, force: bool = force) -> None:
            append = RunJournal.append

            def slowly(*given: Any) -> None:
                time.sleep(job.seconds / 20)
                append(*given)

            pytest.MonkeyPatch().setattr(RunJournal, "append", slowly)  # of this process alone
            try:
                job.work(out, force=force)
            except UserError as refused:
                assert "is being written by" in str(refused)  # noqa: PT017

        others = []
        for _ in range(2):
            others.append(in_a_process(slow))
            time.sleep(drawn.uniform(0, job.seconds / 2))
        try:
            job.work(out)
        except UserError as refused:
            assert "is being written by" in str(refused)  # noqa: PT017
        for other in others:
            other.join()
            assert other.exitcode == 0
        job.check_finished(out)


def died_at(job: Job, out: Path, at: int, fault: Fault, *, force: bool) -> int:
    """How a process ended that has a fault at one of its calls."""

    def doomed() -> None:
        with disk(at, fault):
            job.work(out, force=force)

    child = in_a_process(doomed)
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return int(child.exitcode)


def calls_of(job: Job, tmp_path: Path, *, force: bool) -> int:
    """How many watched calls an undisturbed run makes."""
    out = tmp_path / f"counted-{force}"
    known = out.with_suffix(".calls")
    if not known.exists():
        job.begin(out, force=force)
        with disk() as calls:
            job.work(out, force=force)
        known.write_text(str(len(calls)))
    return int(known.read_text())
