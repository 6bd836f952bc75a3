"""Cells on a Ray cluster: lost workers cost an attempt, and results come from the driver alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.store import RESULT
from saebench_recovery.runs.sweep.cells import planned
from saebench_recovery.runs.sweep.destination import ATTEMPTS, Folder, opened
from saebench_recovery.runs.sweep.engine import Orders, Outcome
from saebench_recovery.runs.sweep.grid import specs_of
from saebench_recovery.runs.sweep.sweep import sweep
from tests.runs.sweep import dying

ray = pytest.importorskip("ray")

from saebench_recovery.runs.sweep.actors import LOST, Actors  # noqa: E402
from saebench_recovery.runs.sweep.address import Address  # noqa: E402
from saebench_recovery.runs.sweep.ray_session import room, session  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One session for all tests: it takes seconds to start."""
    with session(None):
        yield


@pytest.mark.parametrize("kind", ["folder", "address"])
def test_a_worker_that_dies_costs_an_attempt_of_one_cell(tmp_path: Path, kind: str) -> None:
    plans, marks = planned(specs_of({"tasks": ["ioi"], "seed": [0, 1, 2, 3, 4]})), tmp_path / "m"
    marks.mkdir()
    destination = Folder(tmp_path) if kind == "folder" else Address(f"file://{tmp_path}")
    told, dies = list[Outcome](), partial(dying.prepare, marks)
    with session(None), opened(destination):
        workers, share = room(0.0, 2)
        engine = Actors(Orders(tmp_path), destination, workers, share, dies)
        final = sweep(plans, engine, workers, told.append)
    assert len(told) == len(plans)
    assert [final[plan.identity].error for plan in plans] == [
        None,
        None,
        "refused, with 1 threads",
        LOST,
        None,
    ]
    published = {file.parent.name for file in tmp_path.glob(f"*/{RESULT}")}
    assert published == {plans[seed].identity for seed in (0, 1, 4)}
    assert not list(tmp_path.glob(f"{ATTEMPTS}/*/*"))


class Full(Folder):
    """On a disk that has no room."""

    def publish(self, attempt: str, identity: str, *, anew: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_fails_a_cell(tmp_path: Path) -> None:
    (plan,) = planned(specs_of({"tasks": ["ioi"]}))
    full = Full(tmp_path)
    with opened(full):
        engine = Actors(Orders(tmp_path), full, 1, 0.0, partial(dying.prepare, tmp_path))
        (outcome,) = engine.outcomes([[plan]])
    assert outcome == Outcome(plan.identity, "No space left on device")
    assert not list(tmp_path.glob(f"*/{RESULT}"))


def test_a_machine_with_other_code_is_refused(tmp_path: Path) -> None:
    (plan,) = planned(specs_of({"tasks": ["ioi"]}))
    vars(plan)["identity"] = "0" * 16  # as if other code had made it
    engine = Actors(Orders(tmp_path), Folder(tmp_path), 1, 0.0, dying.prepare)
    with pytest.raises(UserError, match="has other code, data or packages than the machine"):
        list(engine.outcomes([[plan]]))
    assert not list(tmp_path.iterdir())


def test_room_is_what_the_cluster_has() -> None:
    cores = int(ray.cluster_resources()["CPU"])
    assert room(0.0, None) == (cores, 0.0)
    assert room(0.0, 5) == (5, 0.0)
    with pytest.raises(UserError, match=rf"{cores} cores and .*: no room for a worker with 1000"):
        room(1000.0, None)
