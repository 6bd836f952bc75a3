"""Settings, paths and stored results that make no sense: one line and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.spec import RunSpec
from tests.cli.test_cli import saebench
from tests.fakes import SITE, record, row, run_result, write_run

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-T", "prompts=99999999"], "allowed: a whole number from 1 to 10000 (default 256)"),
        (["-T", "prompts=" + "9" * 5000], "a number of 5000 digits"),
        (["-D", "latents=" + "[" * 100_000], "nested more than 64 deep"),
        (["-D", "features=[1,1]"], "an index stands twice"),
        (["-D", "features=[]"], "features"),
        (["-D", "site="], "unknown hook point ''"),
        (["-D", "value=1e308"], "from -1000000 to 1000000"),
        (["-D", "value=NaN"], "not a finite number"),
        (["-D", 'site="\\ud800"'], "surrogate"),
        (["-A", "lr=1e308"], "allowed: a number above 0 and at most 100"),
        (["-A", "sites=[]"], "sites"),
        (["-A", 'sites=["nowhere"]'], "unknown hook point 'nowhere'"),
        (["--seed", "9" * 40], "seed"),
        (["--limit", "99999999999"], "limit"),
        (["--budget", "1e300", "--budget-unit", "absolute"], "allowed: a number from 0 to 1000000"),
        (["--target", "long" * 100 + ".yaml"], "File name too long"),
        (["--target", "~nobody/x.yaml"], "No such file"),
        (["--out", ""], "names no place to write to"),
        (["--out", "long" * 100], "File name too long"),
    ],
)
def test_settings(options: list[str], line: str, monkeypatch: Any, capsys: Capture) -> None:
    assert saebench(monkeypatch, "run", "--task", "ioi", *options) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1
    assert len(error) < 2100


@pytest.mark.parametrize("data", [[], ["-T", "data=facts"]])
def test_a_corpus_that_nothing_reads(data: list[str], monkeypatch: Any, capsys: Capture) -> None:
    asked = ["run", "--task", "unlearning", "-T", "forget_corpus=/nope.csv", *data]
    assert saebench(monkeypatch, *asked) == 2
    assert "forget_corpus is not read where data is an embedded set" in capsys.readouterr().err


def test_more_latents_than_there_are(monkeypatch: Any, capsys: Capture, tmp_path: Path) -> None:
    asked = ["run", "--task", "ioi", "-D", "latents=1000000", "--out", str(tmp_path)]
    assert saebench(monkeypatch, *asked) == 2
    assert "1000000 latents asked for at blocks.2.hook_resid_post, which" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "circle"])
def test_a_folder_of_the_run_that_is_none(
    place: str, engine: Any, monkeypatch: Any, capsys: Capture, tmp_path: Path
) -> None:
    assert saebench(monkeypatch, "run", "--json", "--out", str(tmp_path)) == 0
    folder = Path(capsys.readouterr().out.strip()).parent
    folder.rename(tmp_path / "elsewhere")
    if place == "file":
        folder.touch()
    else:
        folder.symlink_to(folder)
    assert saebench(monkeypatch, "run", "--json", "--out", str(tmp_path)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- stored results ---------------------------------------------------------------------------

WRONG: tuple[Any, ...] = (None, 7, "text", [], {}, [[1]], {"a": {"b": []}}, -1.5, True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    spec = RunSpec(tasks=("alpha",)).model_dump(mode="json")
    configs = {"site": SITE, "defense": {"latents": 3}, "attack": {"steps": 2}, "task": {}}
    extra = {"resolved": {"alpha": configs}, "environment": {"a": 1}, "plugin_files": []}
    flips = [record(id=str(i), recovered=i < 2) for i in range(3)]
    return write_run(tmp_path / "run", run_result(row(), spec={**spec, **extra}), flips)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values, not far into the measures."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, inner in items:
        yield (*before, key)
        if isinstance(inner, dict | list) and len(before) < 3:
            yield from places(inner, (*before, key))


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place; without it where that is `...`."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return copy


def test_results_with_any_value_missing_or_of_another_type(
    run: Path, monkeypatch: Any, capsys: Capture, tmp_path: Path
) -> None:
    """Whatever the verbs make of it, it is a table or one line."""
    result = json.loads((run / "result.json").read_text())
    tried = 0
    for number, place in enumerate(places(result)):
        for new in (..., WRONG[number % len(WRONG)], WRONG[(number + 4) % len(WRONG)]):
            (run / "result.json").write_text(json.dumps(changed(result, place, new)))
            verbs = (["show"], ["leaderboard", "--out", str(tmp_path / "boards")], ["compare"])
            verb = verbs[tried % 3]
            given = [str(run)] * (2 if verb == ["compare"] else 1)
            code = saebench(monkeypatch, *verb, *given)
            error = capsys.readouterr().err
            assert code == (2 if error else 0), (place, new)
            assert len(error.splitlines()) <= 1, (place, new, error)
            tried += 1
    assert tried > 300
