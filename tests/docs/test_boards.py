"""The committed boards, their figure and the README's board are those of the committed evidence."""

from __future__ import annotations

import importlib
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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"low": 0.2519, "k": 7}', b'{"low": 0.25190000000000007, "k": 7}', True),
        (b"1.5e-07,clamp", b"1.5000000000000001e-07,clamp", True),
        (b'{"low": 0.2519, "k": 7}', b'{"low": 0.2520, "k": 7}', False),
        (b'{"flops": 1000000000000}', b'{"flops": 1000000000001}', False),
        (b'"identity": "1e5f0.25"', b'"identity": "1e5f0.250"', False),
        (b"| 0.99 |", b"| 0.990 |", False),
        (b"1e-13", b"9e-13", False),
        (b'"1234e56789012345"', b'"9876e56789012345"', False),
        (b"0.5", b"0.5,0.5", False),
    ],
)
def test_boards_may_differ_by_the_rounding_of_another_machine(
    one: bytes, other: bytes, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    boards = importlib.import_module("docs.boards")
    assert boards.alike(one, other) is same


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
