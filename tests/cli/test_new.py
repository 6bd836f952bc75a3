"""`saebench new` writes a plugin that runs as it stands, and `list` shows what it can be told."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saebench_recovery import __version__
from saebench_recovery.base.catalogue import Kind
from saebench_recovery.base.errors import UserError
from saebench_recovery.cli import app
from saebench_recovery.results.store import read_result


def printed(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("kind", ["defense", "attack", "task"])
def test_a_new_plugin_passes_its_check_and_gets_a_row(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, file = f"fresh-{kind}", f"fresh_{kind}.py"
    told = printed("new", kind, file).splitlines()
    program, verb, *options = shlex.split(told[-1])
    assert (program, verb) == ("saebench", "run")
    run = printed("run", *options, "--limit", "24", "--json", "--out", "runs").strip()
    result = read_result(tmp_path / run)
    (row,) = result.rows
    assert getattr(row, kind) == name
    assert row.recovery.n > 0
    assert "invalid" not in {flag.level for flag in row.flags}


@pytest.mark.parametrize(
    ("given", "made", "line"),
    [
        ('f" {name}" for', '"" for', "has an answer without a token"),
        ('wrong=f" {wrong}"', 'wrong=""', "has an answer without a token"),
        ("for name in (first, second, *strangers)", "for name in ()", "has no answer to compare"),
    ],
)
def test_an_example_without_an_answer_is_named(
    given: str, made: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"empty-{len(made)}"
    file = Path(f"{name.replace('-', '_')}.py")
    options = shlex.split(printed("new", "task", str(file)).splitlines()[-1])[2:]
    text = file.read_text("utf-8")
    assert text.count(given) == 1
    file.write_text(text.replace(given, made), "utf-8")
    with pytest.raises(UserError, match=f"example '{name}/.*' {line}"):
        printed("run", *options, "--limit", "8", "--out", "runs")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("new", "defence", "a.py"), "did you mean 'defense'"),
        (("new", "defense", "a.txt"), "does not name a plugin file; use small letters"),
        (("new", "defense", "1a.py"), "does not name a plugin file; use small letters"),
        (("new", "defense", "clamp.py"), "defense name 'clamp' is taken"),
        (("new", "task", "none.py"), "a class 'None' would hide what plugins use"),
        (("new", "attack", "residual_delta.py"), "a class 'ResidualDelta' would hide what plugins"),
        (("new", "task", "there.py"), "'there.py' exists; choose another name"),
        (("list", "defenses", "clmp"), "unknown defense 'clmp'; did you mean 'clamp'"),
        (("list", "targets", "organsm"), "unknown target 'organsm'; did you mean 'organism'"),
    ],
)
def test_what_cannot_be_written_or_listed(
    words: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.py").write_text("kept", "utf-8")
    with pytest.raises(UserError, match=re.escape(line)):
        printed(*words)
    assert [path.read_text("utf-8") for path in tmp_path.iterdir()] == ["kept"]


def test_a_plugin_is_listed_with_its_settings() -> None:
    listed = printed("list", "defenses", "steering")
    assert "-D strength" in listed
    assert "a number from" in listed
    settings = json.loads(printed("list", "attacks", "gcg", "--json"))["settings"]
    assert settings["length"] == {
        "meaning": "tokens of the suffix",
        "allowed": "a whole number from 1 to 512",
        "default": "8",
    }


def test_names_are_listed_as_json() -> None:
    assert {"ioi", "tpp", "unlearning", "refusal"} <= set(
        json.loads(printed("list", "tasks", "--json"))
    )


def test_the_version_is_the_package_s() -> None:
    assert printed("--version") == f"{__version__}\n"
