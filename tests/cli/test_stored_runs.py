"""`show`, `compare`, `leaderboard` and `schema` work from what is stored, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saebench_recovery.spec import RunSpec
from tests.fakes import SITE, flag, record, row, run_result, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two complete runs of task alpha, whose defenses differ."""
    folders = []
    for name in ("clamp", "ablation"):
        spec = RunSpec(defense=name, tasks=("alpha",)).model_dump(mode="json")
        configs = {"site": SITE, "defense": {}, "attack": {}, "task": {}}
        result = run_result(
            row(defense=name, flags=(flag("no-gradient"),)),
            identity=f"run-{name}",
            spec={**spec, "resolved": {"alpha": configs}, "plugin_files": []},
        )
        flips = [record(id=str(i), recovered=i < 5) for i in range(9)]
        folders.append(str(write_run(tmp_path / name, result, flips)))
    return folders


def without_torch(*arguments: str) -> str:
    """What the command prints; it must import neither torch nor transformers."""
    code = (
        f"import sys; sys.argv = ['saebench', *{arguments!r}]\n"
        "from saebench_recovery.cli import main\n"
        "from saebench_recovery.results import consistency\n"
        "consistency.mismatches = lambda result, stored: ()\n"  # as in made_up.py
        "try: main()\n"
        "except SystemExit as stopped: assert not stopped.code, stopped.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_show(runs: list[str]) -> None:
    printed = without_torch("show", *runs)
    for words in (
        "clamp against orthogonal",
        "ablation against orthogonal",
        ".80 [.75 .85]",
        "no-gradient (caution, alpha): no-gradient is so",
    ):
        assert words in printed
    assert "0.80 [0.75, 0.85]" in without_torch("show", runs[0], "--full")
    each = without_torch("show", *runs, "--json").splitlines()
    assert [json.loads(line)["rows"][0]["defense"] for line in each] == ["clamp", "ablation"]


def test_compare(runs: list[str]) -> None:
    printed = without_torch("compare", *runs)
    for words in ("9 flips in common", "ablation against orthogonal", "+0.00 [+0.00, +0.00]"):
        assert words in printed


def test_leaderboard(runs: list[str], tmp_path: Path) -> None:
    printed = without_torch("leaderboard", *runs, "--out", str(tmp_path / "boards"))
    assert [Path(line).name for line in printed.splitlines()] == [
        "organism-alpha.json",
        "organism.md",
        "organism-alpha.csv",
    ]


def test_schema() -> None:
    assert '"$defs"' in without_torch("schema")
