"""Numbers that no run has, in files that somebody edited: one line each, whoever reads the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery import run
from saebench_recovery.base.errors import UserError
from saebench_recovery.results.consistency import read_consistent
from saebench_recovery.runs.verify.verify import hold_together
from tests.forged import put


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("genuine")
    return out / run(tasks=["ioi"], limit=6, attack_config={"steps": 3}, out=out).identity


@pytest.fixture
def folder(genuine: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(genuine, tmp_path / genuine.name))


def forge(folder: Path, file: str, place: str, value: Any) -> None:
    """Set a leaf, in a file of lines in each of them, and let the log count the bytes."""
    text = (folder / file).read_text("utf-8")
    if file.endswith(".json"):
        documents = [json.loads(text)]
    else:
        documents = [json.loads(line) for line in text.splitlines()]
    for document in documents:
        put(document, place, value)
    (folder / file).write_text("".join(json.dumps(one) + "\n" for one in documents), "utf-8")
    if file == "records.jsonl":
        assert (folder / "chunks.jsonl").read_bytes().count(b"\n") == 1
        forge(folder, "chunks.jsonl", "records_end", (folder / file).stat().st_size)


def verified(folder: Path) -> int:
    """The exit code of what verifies it; 2 where it is no file of a run."""
    try:
        return hold_together(folder).exit_code
    except UserError:
        return 2


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("run.json", "facts/0/examples/n", 1),  # fewer than show the behaviour
        ("run.json", "facts/0/seed", -1),
        ("run.json", "facts/0/members", ["orthogonal", "two"]),  # without its FLOPs
        ("run.json", "facts/0/compute/attack/flops", 10**400),
        ("result.json", "rows/0/compute/attack/flops", 10**400),
        ("chunks.jsonl", "attacking/flops", 10**400),
        ("records.jsonl", "measures/fidelity", 1.7e308),
        ("records.jsonl", "measures/fidelity", 1e200),
        ("records.jsonl", "measures/recovery", 2.0),
        ("records.jsonl", "measures/wrong_target", -1e308),
    ],
)
def test_they_are_refused_in_one_line(folder: Path, file: str, place: str, value: Any) -> None:
    forge(folder, file, place, value)
    with pytest.raises(UserError, match="does not f") as refused:
        read_consistent(folder)
    assert "\n" not in str(refused.value)
    assert verified(folder) in (1, 2)


def test_a_number_is_no_verdict(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / "records.jsonl").open(encoding="utf-8")]
    verdicts = [record["measures"]["nothing"] for record in records]
    assert verdicts
    assert not any(verdicts)
    forge(folder, "records.jsonl", "measures/nothing", 0.0)
    with pytest.raises(UserError, match=r"measures\.nothing\.k"):
        read_consistent(folder)
