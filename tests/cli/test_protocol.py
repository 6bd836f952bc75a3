"""`run --protocol` and targets by parts, as a user meets them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from saebench_recovery.tasks.ioi import IndirectObject

from saebench_recovery import registry
from saebench_recovery.cli import main
from saebench_recovery.results.store import read_result
from tests.fake_engine import Engine
from tests.fakes import FakeTask

Capture = pytest.CaptureFixture[str]


def saebench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["saebench", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as exit:
        main()
    return int(exit.value.code or 0)


@pytest.fixture
def ioi(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine with a task that has the real one's settings."""
    changes = {"name": "ioi", "Config": IndirectObject.Config, "__module__": __name__}
    fake = type("FakeIoi", (FakeTask,), changes)
    monkeypatch.setitem(registry._registered["task"], "ioi", fake)


def test_run_and_show_print_ours_beside_theirs(
    ioi: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    command = ("run", "--protocol", "published", "--task", "ioi", "--out", str(tmp_path))
    assert saebench(monkeypatch, *command) == 0
    printed = capsys.readouterr().out
    for words in (
        "IOI on GPT-2 small: encoder projection",
        "37/37 = 1.000 [0.906, 1.000]",
        "80/100 = 0.800 [",
        "budget 20.0 (absolute)",
        "see docs/protocol.md",
    ):
        assert words in printed
    assert "departs" not in printed
    (folder,) = tmp_path.iterdir()
    spec = read_result(folder).spec
    assert (spec["protocol"], spec["target"]) == ("published", "gpt2-small")
    assert spec["defense_config"]["latents"] == 64
    assert saebench(monkeypatch, "show", str(folder)) == 0
    assert capsys.readouterr().out in printed


def test_options_and_variables_of_the_user_are_departures(
    ioi: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("SAEBENCH_SEED", "3")
    command = ("run", "--protocol", "published", "--task", "ioi", "--out", str(tmp_path))
    assert saebench(monkeypatch, *command, "-A", "steps=9", "--threat-model", "reclamp") == 0
    printed = capsys.readouterr().out
    for words in (
        "departs: threat_model is reclamp, the protocol has post",
        "departs: seed is 3, the protocol has 0",
        "departs: steps is 9, the protocol has 100",
    ):
        assert words in printed


def test_an_attack_that_was_not_published(
    ioi: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    command = ("run", "--protocol", "published", "--task", "ioi", "--out", str(tmp_path))
    assert saebench(monkeypatch, *command, "--attack", "random-direction") == 0
    assert "nothing is published about random-direction in these rows" in capsys.readouterr().out
