"""`saebench check` and what a broken plugin says on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import saebench_recovery
from saebench_recovery.base import named_code
from saebench_recovery.cli import main
from tests.cases.examined import FOLDER, organism

PLUGIN = FOLDER / "defenses.py"


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAEBENCH_DEBUG", "")


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    """The exit code of a command line."""
    monkeypatch.setattr(sys, "argv", ["saebench", *words])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code


@pytest.mark.parametrize(("defense", "code"), [("clamp", 0), ("bad-none", 1), ("h-neg-grad", 1)])
def test_exit_codes(
    defense: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    organism()
    words = ["check", "--plugin", str(PLUGIN), "--defense", defense, "--task", "ioi"]
    assert called(monkeypatch, *words, "--limit", "32", "--attack", "unconstrained") == code
    shown = capsys.readouterr().out
    assert shown.startswith(f"ioi: {defense} against unconstrained")
    if defense == "bad-none":
        assert "error: returns-none\n    defense 'bad-none': intervene returned None" in shown


def test_code_that_the_command_line_names_may_be_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(named_code, "_named", set[str]())
    words = ["check", "--task", "refusal", "-T", "judge=operator:add", "--limit", "4"]
    assert called(monkeypatch, *words) == 1
    assert "error: refused\n    judge 'operator:add' gave " in capsys.readouterr().out


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_is_one_line(
    debug: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    organism()
    words = ["run", "--plugin", str(PLUGIN), "--defense", "bad-raises", "--task", "ioi"]
    flag = ["--debug"] * debug
    assert called(monkeypatch, *words, "--limit", "8", "--out", str(tmp_path), *flag) == 2
    *before, last = capsys.readouterr().err.strip().splitlines()
    assert "defense 'bad-raises': intervene raised KeyError: 'oops' (raises)" in last
    assert last.startswith("error: ")
    assert any("Traceback" in line for line in before) == debug


def test_from_python() -> None:
    organism()
    found = saebench_recovery.check(
        defense="bad-double", tasks=["ioi"], attack="unconstrained", limit=16
    )
    assert [(one.name, one.level) for one in found["ioi"]] == [("wrong-dtype", "error")]


RAISES = """
import torch
from saebench_recovery import register_defense
from saebench_recovery.defenses.clamp import Clamp


@register_defense("{method}-raises")
class Raises(Clamp):
    def {method}(self, *given):
        raise {error}
"""


@pytest.mark.parametrize(
    ("method", "error", "line"),
    [
        ("intervene", "torch.OutOfMemoryError('full')", "intervene: not enough memory; try a"),
        ("__init__", "SystemExit(0)", "__init__ raised SystemExit: 0"),
    ],
)
def test_memory_and_exits_are_said_of_the_plugin(
    method: str,
    error: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file, defense = tmp_path / "raises.py", f"{method}-raises"
    file.write_text(RAISES.format(method=method, error=error))
    words = ["check", "--plugin", str(file), "--defense", defense, "--task", "ioi", "--limit", "4"]
    assert called(monkeypatch, *words) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith(f"error: defense {defense!r}: {line}")
