"""Stored runs as a data frame."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.frame import load_runs
from tests.fakes import rate, row, run_result, write_run

pytestmark = pytest.mark.usefixtures("made_up_runs")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two complete runs, one of them on two tasks, and one that is not complete."""
    for identity, rows in (
        ("aa", [row("alpha", wrong_target=rate(0, 0)), row("beta", wrong_target=rate(0, 0))]),
        ("bb", [row("alpha", 20, wrong_target=rate(0, 0))]),
    ):
        write_run(tmp_path / identity, run_result(*rows, identity=identity), [])
    (tmp_path / "cc").mkdir()
    (tmp_path / "cc" / "run.json").write_text("{}")
    return tmp_path


def test_a_line_for_each_row(runs: Path) -> None:
    frame = load_runs(runs)
    assert list(frame["task"]) == ["alpha", "beta", "alpha"]
    assert frame["recovery"].tolist() == [0.8, 0.8, 0.2]
    assert (frame["recovery_low"] < frame["recovery"]).all()
    assert frame["wrong_target"].isna().tolist() == [True] * 3
    assert frame["wrong_target"].dtype == "float64"
    assert all(isinstance(json.loads(text), dict) for text in frame["defense_settings"])


def test_one_run_is_a_folder_too(runs: Path) -> None:
    assert set(load_runs(runs / "bb")["identity"]) == {"bb"}


def test_it_is_a_data_set_in_one_line(runs: Path) -> None:
    made = datasets.Dataset.from_pandas(load_runs(runs))
    assert list(made["task"]) == ["alpha", "beta", "alpha"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete run in"):
        load_runs(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        load_runs(tmp_path / "nowhere")
