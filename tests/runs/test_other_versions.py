"""Runs that another version of the harness made are recomputed under their own settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery import run
from saebench_recovery.runs import fingerprint
from saebench_recovery.runs.verify import recompute
from saebench_recovery.runs.verify.verify import verify
from saebench_recovery.targets.loading import load_target
from tests.forged import Forger

OLD = "0123456789abcdef" * 4
LATENTS = 12  # not the target's own number


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an older version, in which another number of latents was the default."""
    out = tmp_path_factory.mktemp("older")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "harness_fingerprint", lambda: OLD)
        few: dict[str, Any] = {"steps": 3}
        chosen: dict[str, Any] = {"latents": LATENTS}
        made = run(tasks=["ioi"], limit=4, defense_config=chosen, attack_config=few, out=out)
    forger = Forger(out / made.identity)
    forger.spec("defense_config", {})
    forger.seal()
    return out / made.identity


@pytest.fixture
def folder(older: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(older, tmp_path / older.name))


@pytest.fixture(autouse=True)
def replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model for all."""
    target = load_target("organism", "cpu")
    monkeypatch.setattr(recompute, "load_target", lambda *_, **__: target)


def test_its_numbers_hold_and_its_version_is_noted(older: Path) -> None:
    found = verify(older)
    assert [m.line for m in found.mismatches] == []
    assert (found.exit_code, found.flips) == (0, found.stored_flips)
    made, counted = found.notes
    assert made.startswith("made with saebench-recovery ")
    assert "(harness 01234567)" in made
    assert counted.startswith("identity: as this version counts settings it is ")


def test_a_number_that_is_not_so_does_not_hold(folder: Path) -> None:
    forger = Forger(folder)
    forger.records[0]["objective_recovered"] *= 1.01
    forger.seal()
    found = verify(folder)
    assert found.exit_code == 1
    assert [m.field for m in found.mismatches] == ["objective_recovered"]
    assert "(harness 01234567)" in found.notes[0]


def test_an_option_that_is_gone_cannot_be_checked(folder: Path) -> None:
    forger = Forger(folder)
    forger.spec("resolved/ioi/defense/gone", 1)
    forger.seal()
    found = verify(folder)
    assert found.exit_code == 2
    assert "unknown key 'gone'" in found.unchecked[0].line


def test_an_option_that_came_later_has_its_default(folder: Path) -> None:
    forger = Forger(folder)
    for document in (forger.result, forger.state):
        del document["spec"]["resolved"]["ioi"]["attack"]["lr"]
        del document["spec"]["batch_size"]
    forger.seal()
    assert verify(folder).exit_code == 0
