"""Sweeps as a user meets them: lists of values, grid files, dry runs, what failed, exit codes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from threading import Event

import pytest

from saebench_recovery.base.catalogue import BUILT_IN
from saebench_recovery.base.errors import UserError
from saebench_recovery.cli import live_view, progress
from saebench_recovery.results.store import RESULT, read_result
from saebench_recovery.runs.sweep.engine import Outcome
from saebench_recovery.runs.sweep.grid import read_grid
from tests.cli.test_cli import saebench
from tests.fake_engine import Engine
from tests.structure.source import ROOT

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    file = tmp_path / "grid.yaml"
    file.write_text("tasks: [alpha, beta]\nattack: [orthogonal, unconstrained]\nbudget: 0.25\n")
    return file


def test_lists_of_values_are_runs_of_their_own(
    engine: Engine, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    words = ["--defense", "clamp,ablation", "--attack", "orthogonal, gcg", "--task", "alpha"]
    out = ["--out", str(tmp_path)]
    assert saebench(monkeypatch, "run", *words, *out) == 0
    shown = capsys.readouterr()
    paths = [Path(line) for line in shown.out.splitlines() if line.endswith(RESULT)]
    specs = [read_result(path).spec for path in paths]
    assert [(s["defense"], s["attack"]) for s in specs] == [
        (defense, attack) for defense in ("clamp", "ablation") for attack in ("orthogonal", "gcg")
    ]
    assert "ablation against gcg on organism, reclamp, budget 0.5 (spread)" in " ".join(
        shown.out.split()
    )
    assert (len(engine.loaded), len(engine.fitted)) == (1, 2)
    one = ["--defense", "ablation", "--attack", "gcg", "--task", "alpha"]
    assert saebench(monkeypatch, "run", *one, *out, "--json") == 0
    assert Path(capsys.readouterr().out.strip()) == paths[-1]
    assert len(engine.evaluated) == 4


def test_a_grid_is_listed_and_then_run(
    engine: Engine, grid: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    out = ["--out", str(tmp_path / "runs"), "--jobs", "1"]
    assert saebench(monkeypatch, "sweep", str(grid), *out, "--dry-run") == 0
    *cells, last, cost = capsys.readouterr().out.splitlines()
    assert (len(cells), list(tmp_path.glob("runs/*"))) == (4, [])
    assert re.fullmatch(
        r"[0-9a-f]{16}  to do  1  [\d.]+e\+\d+ FLOPs  +\d+ s  "
        r"organism: clamp against orthogonal on alpha, budget 0.25",
        cells[0],
    )
    assert last.startswith("4 cells: 4 to do.")
    assert "2 in all" in last
    assert cost.startswith("Estimate for 4 of them, from up to 8 flips of one cell for each kind: ")
    engine.evaluated.clear()
    assert saebench(monkeypatch, "sweep", str(grid), *out, "--shard", "1/2") == 0
    assert len(engine.evaluated) == 2
    assert saebench(monkeypatch, "sweep", str(grid), *out) == 0
    assert sorted(engine.evaluated) == ["alpha", "alpha", "beta", "beta"]
    shown = capsys.readouterr()
    assert [line.partition(",")[0] for line in shown.out.splitlines()] == [
        "2 cells are complete",
        "4 cells are complete",
    ]
    assert shown.err == ""
    engine.loaded.clear()
    assert saebench(monkeypatch, "sweep", str(grid), *out, "--dry-run") == 0
    assert "4 cells: 4 done." in capsys.readouterr().out
    assert engine.loaded == []  # nothing is left to estimate
    assert saebench(monkeypatch, "sweep", str(grid), *out, "--budget", "0.5", "--task", "beta") == 0
    assert len(engine.evaluated) == 6


def alpha_fails(task: str, number: int) -> None:
    if task == "alpha":
        raise UserError("the model gives NaN")


def test_what_fails_is_listed_with_its_line(
    engine: Engine, grid: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    engine.before = alpha_fails
    words = ["sweep", str(grid), "--out", str(tmp_path / "runs"), "--jobs", "1"]
    assert saebench(monkeypatch, *words) == 2
    first, second, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"failed: organism: clamp against orthogonal on alpha, budget 0.25 \([0-9a-f]{16}\): "
        "the model gives NaN",
        first,
    )
    assert "unconstrained on alpha" in second
    assert last == "2 of 4 cells are complete; the same command tries the others again"
    engine.before = lambda task, number: None
    assert saebench(monkeypatch, *words) == 0
    assert engine.evaluated == ["beta", "beta", "alpha", "alpha"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("defense: [clamp, clmp]", "unknown defense 'clmp'; did you mean 'clamp'"),
        ("attack: []", "has no cell: attack is empty"),
        ("budget: [1, 1.0]", "two cells are alike"),
        ("defense_config: [{latents: 3}, {latents: 0}]", "latents is 0"),
        ("plugin: [mine.py]", "unknown field 'plugin'"),
        ("[", "not YAML"),
    ],
)
def test_bad_grids_are_one_line_before_anything_runs(
    engine: Engine, tmp_path: Path, monkeypatch: Patch, capsys: Capture, text: str, line: str
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    assert saebench(monkeypatch, "sweep", str(file), "--out", str(tmp_path / "runs")) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert line in shown.err
    assert (shown.err.count("\n"), shown.out, engine.loaded) == (1, "", [])
    assert not list(tmp_path.glob("runs/*"))


def test_a_broken_result_is_named_and_kept(
    engine: Engine, grid: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    words = ["sweep", str(grid), "--out", str(tmp_path / "runs"), "--jobs", "1"]
    assert saebench(monkeypatch, *words) == 0
    file = next(tmp_path.glob(f"runs/*/{RESULT}"))
    file.write_text("{")
    assert saebench(monkeypatch, *words) == 2
    assert "not a result file" in capsys.readouterr().err
    assert file.read_text() == "{"


def test_off_a_terminal_a_line_is_printed_now_and_then(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    spoken, heard = [], Event()

    class Listening:
        def write(self, text: str) -> None:
            spoken.append(text)
            if "left" in text:
                heard.set()

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stderr", Listening())
    with live_view.live_view(3, wanted=True) as view:
        view.finished(Outcome("a", None, 1200))
        view.finished(Outcome("b", "a line"))
        assert heard.wait(60)
    line = next(text for text in spoken if "left" in text)
    assert re.fullmatch(
        r"2 of 3 cells, 1 failed, 1,200 flips, [\d.]+ cells a minute, \d+ min left", line
    )


def test_a_log_says_how_far_the_cell_under_way_is() -> None:
    view = live_view.View(3, None)
    assert view.line_with_cell() == "0 of 3 cells"
    view.told("ioi: clamp against gcg, 3 of 64 flips", 3, 64)
    assert view.line_with_cell() == "0 of 3 cells; ioi: clamp against gcg, 3 of 64 flips"
    view.finished(Outcome("a", None, 64))
    assert "gcg" not in view.line_with_cell()


def test_a_kind_of_cell_that_cannot_be_tried_has_no_estimate(
    engine: Engine, grid: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    engine.before = alpha_fails
    words = ["sweep", str(grid), "--out", str(tmp_path / "runs"), "--dry-run"]
    assert saebench(monkeypatch, *words) == 0
    cells = capsys.readouterr().out.splitlines()[:4]
    assert [("FLOPs" in line, "alpha" in line) for line in cells] == [(False, True)] * 2 + [
        (True, False)
    ] * 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--engine", "rai"], "unknown engine 'rai'; did you mean 'ray'"),
        (["--address", "auto"], "--address is of a cluster: give --engine ray too"),
        (["--gpu-share", "0.5"], "--gpu-share is of a cluster"),
        (["--out", "s3://bucket/runs"], "'s3://bucket/runs' is an address: give --engine ray"),
        (["--engine", "ray", "--out", "nosuch://runs"], "cannot use 'nosuch://runs': Protocol not"),
        (["--engine", "ray", "--out", "dropbox://runs"], "cannot use 'dropbox://runs': "),
    ],
    ids=str,
)
def test_a_cluster_or_address_that_cannot_be_is_one_line(
    engine: Engine, grid: Path, monkeypatch: Patch, capsys: Capture, words: list[str], line: str
) -> None:
    assert saebench(monkeypatch, "sweep", str(grid), *words) == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert (shown.count("\n"), engine.loaded) == (1, [])


def test_ray_that_is_not_installed_is_one_line(
    engine: Engine, grid: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("ray_session", "actors"):
        monkeypatch.delitem(sys.modules, f"saebench_recovery.runs.sweep.{name}", raising=False)
    words = ["sweep", str(grid), "--engine", "ray", "--out", str(tmp_path / "runs")]
    assert saebench(monkeypatch, *words) == 2
    assert "pip install 'saebench-recovery[ray]'" in capsys.readouterr().err


def test_the_committed_grid_has_every_built_in_defense() -> None:
    specs = read_grid(ROOT / "leaderboards" / "organism.yaml")
    assert {spec.defense for spec in specs} == set(BUILT_IN["defense"])
    assert {spec.attack for spec in specs} <= set(BUILT_IN["attack"])
    assert {spec.tasks for spec in specs} == {(name,) for name in BUILT_IN["task"]}
