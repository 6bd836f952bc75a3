"""The committed boards, their figure and the README's board are those of the committed evidence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from saebench_recovery.protocols.experiment import experiments
from tests.structure.source import ROOT


def test_the_boards_are_up_to_date() -> None:
    pytest.importorskip("vl_convert")
    pytest.importorskip("itables")
    command = [sys.executable, "-m", "docs.boards", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_external_figures_are_those_of_the_protocol() -> None:
    page = (ROOT / "leaderboards" / "external.md").read_text("utf-8")
    every = [
        number
        for experiment in experiments("published").values()
        for arm in experiment.arms.values()
        for number in arm.numbers
        if number.ours == "recovery"
    ]
    assert page.count("\n| `") == len(every)
    assert "| `ioi` | gpt2-small | `orthogonal` | 37 of 37 |" in page
