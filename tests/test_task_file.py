"""The page on task files works word for word, and what such a file holds is in the identity."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from saebench_recovery import registry
from saebench_recovery.results.store import read_result
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.spec import RunSpec
from tests.cli.test_cli import saebench

PAGE = Path(__file__).parents[1] / "docs" / "task-file.md"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files in the current folder; what is registered is forgotten afterwards."""
    blocks = re.findall(r"^`(gifts\.\w+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.M | re.S)
    assert [name for name, _ in blocks] == ["gifts.csv", "gifts.yaml"]
    for name, text in blocks:
        (tmp_path / name).write_text(text, "utf-8")
    kept = {kind: dict(known) for kind, known in registry._registered.items()}
    monkeypatch.setattr(registry, "_registered", kept)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page(written: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "saebench"
        assert saebench(monkeypatch, *arguments) == 0, capsys.readouterr()
    (found,) = written.glob("runs/*/result.json")
    (row,) = read_result(found).rows
    assert (row.task, row.examples.n) == ("gifts", 7)
    assert row.examples.valid > 0
    verify = ("verify", str(found.parent), "--plugin", "gifts.yaml")
    assert saebench(monkeypatch, *verify) == 0, capsys.readouterr()


def test_the_identity_follows_both_files(written: Path) -> None:
    def identity(file: str = "gifts.yaml") -> str:
        registry.load_plugin_file(file)
        settings = {"site": "blocks.2.hook_resid_post"}
        return Plan.of(check_names(RunSpec(tasks=("gifts",), defense_config=settings))).identity

    found = [identity()]
    for name, old, new in (
        ("gifts.csv", "David,Andrew,Daniel", "David,Andrew,Amy"),
        ("gifts.yaml", "giver, stranger", "stranger, giver"),
    ):
        text = (written / name).read_text()
        assert old in text
        (written / name).write_text(text.replace(old, new))
        found.append(identity())
    assert len(set(found)) == 3
    registry._registered["task"].pop("gifts")
    (written / "elsewhere").mkdir()
    for name in ("gifts.csv", "gifts.yaml"):
        (written / name).rename(written / "elsewhere" / name)
    assert identity("elsewhere/gifts.yaml") == found[-1]  # where they lie does not matter
