"""Attempts appear only when they are published, whole, and never over a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.store import CHUNKS, RESULT
from saebench_recovery.runs.sweep.address import Address, send
from saebench_recovery.runs.sweep.cell_worker import is_address
from saebench_recovery.runs.sweep.cells import planned
from saebench_recovery.runs.sweep.destination import ATTEMPTS, Destination, Folder, opened
from saebench_recovery.runs.sweep.grid import specs_of
from tests.fake_engine import Engine

CELL = "0123456789abcdef"


@pytest.fixture(params=["folder", "address"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Destination:
    out = tmp_path / "out"
    return Folder(out) if request.param == "folder" else Address(f"file://{out}")


def write(destination: Destination, result: str, folder: Path, identity: str = CELL) -> str:
    """What a worker does: a new attempt at a cell."""
    place = destination.attempt(identity)
    made = (folder / result if is_address(place) else Path(place)) / identity
    (made / "evidence").mkdir(parents=True)
    (made / "evidence" / "0").write_text(result)
    (made / RESULT).write_text(result)
    if is_address(place):
        send(made, place)
    return place


def shown(out: Path) -> dict[str, str]:
    return {
        str(file.relative_to(out)): file.read_text()
        for file in out.rglob("*")
        if file.is_file() and file.name in (RESULT, "0", CHUNKS)
    }


def test_the_first_attempt_that_is_published_stays(
    destination: Destination, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with opened(destination):
        first, zombie, again = (
            write(destination, result, tmp_path) for result in ("first", "zombie", "again")
        )
        assert not list(out.glob(f"*/{RESULT}"))
        destination.publish(first, CELL, anew=False)
        destination.publish(zombie, CELL, anew=False)
        assert (out / CELL / RESULT).read_text() == "first"
        destination.publish(again, CELL, anew=True)
    assert shown(out) == {f"{CELL}/{RESULT}": "again", f"{CELL}/evidence/0": "again"}
    assert not list(out.glob(f"{ATTEMPTS}/*/*"))


def test_what_an_interrupted_run_left_makes_way(destination: Destination, tmp_path: Path) -> None:
    left = tmp_path / "out" / CELL / CHUNKS
    left.parent.mkdir(parents=True)
    left.write_text("of another process")
    with opened(destination):
        destination.publish(write(destination, "whole", tmp_path), CELL, anew=False)
    assert shown(tmp_path / "out") == {f"{CELL}/{RESULT}": "whole", f"{CELL}/evidence/0": "whole"}


def test_cells_that_are_published_are_done(
    engine: Engine, destination: Destination, tmp_path: Path
) -> None:
    plans = planned(specs_of({"tasks": ["alpha"], "seed": [0, 1]}))
    identity = plans[0].identity
    with opened(destination):
        place = write(destination, "whole", tmp_path, identity)
        assert destination.states(plans) == ["to do", "to do"]
        destination.publish(place, identity, anew=False)
        assert destination.states(plans) == ["done", "to do"]


def test_a_folder_that_machines_do_not_share_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with opened(folder), pytest.raises(UserError, match="all machines of the cluster share"):
        folder.publish(folder.attempt(CELL), CELL, anew=False)


@pytest.mark.parametrize("kind", ["folder", "address"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    file.touch()
    destination = Folder(file) if kind == "folder" else Address(f"file://{file}")
    with pytest.raises(UserError, match=r"cannot (use|write to) .*file"), opened(destination):
        pass
