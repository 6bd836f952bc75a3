"""A report shows the standings of a board, as data that no name in it can turn into markup."""

from __future__ import annotations

import gzip
import json
import re
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.pages import write_boards
from saebench_recovery.results.report import libraries, standing_lines
from saebench_recovery.results.report.board_parquet import board_parquet
from saebench_recovery.results.report.html import content, page
from saebench_recovery.results.report.html.write import write_report
from saebench_recovery.results.reported import ATTRIBUTION, Reported, read_reported
from saebench_recovery.schema import Attribution, DeltaEffect, PartEffect, TaskAttribution
from tests.boards import ATTACKS, HOSTILE, board
from tests.cli.test_cli import saebench
from tests.fakes import SITE, made, record, row, run_result, write_run

Patch = pytest.MonkeyPatch


@pytest.fixture
def no_libraries(monkeypatch: Patch) -> None:
    """Without the scripts of the libraries, of which one takes seconds to be put together."""
    monkeypatch.setattr(libraries, "library", lambda name: None)
    monkeypatch.setattr(page, "table_library", lambda: ("", ""))
    monkeypatch.setattr(page, "plot_library", lambda: "")


@pytest.fixture
def run(tmp_path: Path, made_up_runs: None) -> Path:
    configs = {"site": SITE, "defense": {}, "attack": {}, "task": {}}
    spec = {**run_result().spec, "tasks": ["alpha"], "resolved": {"alpha": configs}}
    flips = [record(id=str(i), recovered=i < 5) for i in range(9)]
    return write_run(tmp_path / "runs" / "one", run_result(row(), spec=spec), flips)


def data_of(text: str) -> Any:
    (packed,) = re.findall('id="data">([^<]*)<', text)
    return json.loads(gzip.decompress(b64decode(packed)))


def test_its_lines_are_those_of_the_markdown_page() -> None:
    made_up = board(4)
    lines = content.lines(Reported([made_up], {}))
    (group,) = made_up.groups
    assert len(lines) == 4
    for line, defense in zip(lines, group.defenses, strict=True):
        assert line["cells"][4:-1] == standing_lines.cells(defense)[1:]
        assert line["remarks"][1:] == list(standing_lines.remarks(defense))
        assert [attack["cells"][0] for attack in line["attacks"]] == list(ATTACKS)
        assert len(line["cells"]) == len(line["order"]) == len(content.HEADS)
    assert [line["cells"][3] for line in lines] == ["1 (tie)", "1 (tie)", "2", "-"]
    commands = {
        entry["command"] for line in lines for a in line["attacks"] for entry in a["entries"]
    }
    assert commands == {entry.command for entry in group.entries}


def test_every_point_has_its_interval() -> None:
    (first, *_) = content.lines(Reported([board(2)], {}))
    for point in first["points"]:
        assert point["low"] <= point["recovery"] <= point["high"]
        assert point["drift"] > 0


@pytest.mark.usefixtures("no_libraries")
def test_names_of_strangers_stand_in_no_markup(tmp_path: Path) -> None:
    write_boards([board(2, target=HOSTILE, task=HOSTILE, defense=HOSTILE)], tmp_path / "boards")
    write_report([tmp_path / "boards"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "alert(1)" not in text.replace("&lt;script&gt;alert(1)&lt;/script&gt;", "")
    assert not re.findall(r"""(?:src|href)=|url\((?!["']?data:)""", text)
    shown = json.dumps(data_of(text), ensure_ascii=False)
    assert not {"\x1b", "\x07"} & set(shown)
    assert "\\\\x1b]0;owned" in shown


def test_of_runs_with_an_attribution_beside_one(run: Path) -> None:
    part = made(PartEffect, part="clamped")
    delta = made(DeltaEffect, source="recovering", parts=(part,), verdict="carried")
    task = made(TaskAttribution, task="alpha", deltas=(delta,))
    found = made(Attribution, identity="abc", tasks=(task,))
    (run / ATTRIBUTION).write_text(found.model_dump_json())
    for places in ([run], [run.parent], [run / "result.json"]):
        reported = read_reported(places)
        (line,) = content.lines(reported)
        (entry,) = line["attacks"][0]["entries"]
        (kind,) = entry["attribution"]
        assert kind["title"] == "recovering deltas: carried"
        assert ["works alone", "0.50 [0.45, 0.55]"] in kind["rows"]
    (run / ATTRIBUTION).write_text("{}")
    with pytest.raises(UserError, match="is no attribution; make it with `saebench attribute"):
        read_reported([run])


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    pytest.importorskip("itables")
    pytest.importorskip("vl_convert")
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "page.html")
    for words, line in (
        (["nowhere", "--out", out], "no results at 'nowhere'"),
        ([str(tmp_path), "--out", out], "no results at"),
        ([str(run), "--out", str(tmp_path / "file" / "page.html")], "cannot write to"),
        ([str(run), "--out", str(tmp_path)], "is a folder; name a file"),
        ([str(run), "--out", out, "--figures", str(tmp_path / "file")], "cannot write to"),
    ):
        assert saebench(monkeypatch, "report", *words) == 2
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "itables", None)
    assert saebench(monkeypatch, "report", str(run), "--out", out) == 2
    assert "this needs itables: pip install" in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.mark.usefixtures("no_libraries", "engine", "made_up_runs")
def test_a_run_writes_one(tmp_path: Path, monkeypatch: Patch) -> None:
    file, out = tmp_path / "page.html", str(tmp_path / "runs")
    words = ["run", "--task", "alpha", "--out", out, "--report", str(file)]
    assert saebench(monkeypatch, *words) == 0
    (line,) = data_of(file.read_text())["lines"]
    assert line["cells"][:2] == ["organism", "alpha"]


def test_parquet_has_the_lines_of_the_csv_file(tmp_path: Path, monkeypatch: Patch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    made_up = board(3)
    table = parquet.read_table(BytesIO(board_parquet(made_up)))
    assert table.num_rows == 3 * len(ATTACKS)
    assert set(table.column("attack").to_pylist()) == set(ATTACKS)
    assert table.column("rank").to_pylist()[-1] is None
    written = write_boards([made_up], tmp_path, parquet=True)
    assert "organism-ioi.parquet" in {path.name for path in written}


def test_figures(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    pytest.importorskip("itables")
    from saebench_recovery.results.report.html.figures import write_figures

    paths = write_figures(content.lines(Reported([board(2)], {})), tmp_path)
    assert len(paths) == 8
    assert "behaviour under attack" in (tmp_path / "standings-1.svg").read_text()
    assert "recovery against drift" in (tmp_path / "recovery-drift.svg").read_text()
    assert (tmp_path / "recovery-flops.png").read_bytes().startswith(b"\x89PNG")
