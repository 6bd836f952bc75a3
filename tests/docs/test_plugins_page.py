"""The plugins of docs/plugins.md, word for word, run together as the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saebench_recovery import interfaces
from saebench_recovery.cli import app
from saebench_recovery.results.store import read_result

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
BLOCK = re.compile(r'```python\n("""(my_\w+\.py): .*?)```', re.DOTALL)
FILES = {name: text for text, name in BLOCK.findall(PAGE)}


def test_every_helper_is_public() -> None:
    """Besides the decorators, plugins import nothing of the package but the interfaces."""
    for text in FILES.values():
        (names,) = re.findall(r"from saebench_recovery\.interfaces import \(?([^)]*?)\)?\n\n", text)
        assert set(re.findall(r"\w+", names)) <= set(interfaces.__all__)
        assert len(re.findall("saebench_recovery", text)) == 2


def test_they_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert FILES.keys() == {"my_defense.py", "my_attack.py", "my_task.py"}
    for name, text in FILES.items():
        Path(name).write_text(text, "utf-8")
    commands = re.findall(r"^saebench (?:check|run) --plugin my_defense.*$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    (stored,) = Path("runs").iterdir()
    (row,) = read_result(stored).rows
    assert (row.defense, row.attack, row.task) == ("reflection", "plain-ascent", "gift")
    assert row.recovery.k > 0
    assert row.constraint.kind == "exact"
    assert "invalid" not in {flag.level for flag in row.flags}
