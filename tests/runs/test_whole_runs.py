"""Whole runs on the embedded target: real numbers, and real bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench_recovery import run
from saebench_recovery.base.errors import UserError
from saebench_recovery.results.chunks import read_evidence
from saebench_recovery.results.store import read_records, read_result
from saebench_recovery.schema import Row, RunResult
from saebench_recovery.targets import presets
from saebench_recovery.targets.presets import Preset

LIMIT = 16


def first_row(result: RunResult) -> Row:
    return result.rows[0]


def without_time(row: Row) -> dict[str, Any]:
    dumped = row.model_dump(mode="json")
    for role in ("attack", "scoring"):
        dumped["compute"][role].pop("seconds")
    return dumped


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded model and SAEs that may be spoilt, as the target `organism`."""
    folder = tmp_path / "copy"
    assets = Path(str(resources.files("saebench_recovery.targets"))) / "organism" / "assets"
    shutil.copytree(assets, folder)
    original = presets.preset("organism")
    saes = {
        site: str(folder / Path(where).relative_to("organism/assets"))
        for site, where in original.saes.items()
    }
    changed: dict[str, Preset] = {
        "organism": original.model_copy(update={"model": str(folder), "saes": saes})
    }
    monkeypatch.setattr(presets, "presets", lambda: changed)
    return folder


@pytest.fixture(scope="module")
def ioi(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    """A run that tests read, and its folder."""
    out = tmp_path_factory.mktemp("ioi")
    result = run(tasks=["ioi"], out=out, limit=LIMIT)
    return result, out / result.identity


def test_command_line_gives_real_numbers(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "saebench_recovery",
        "run",
        "--json",
        "--task",
        "ioi",
        "--limit",
        str(LIMIT),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = tmp_path / done.stdout.strip()
    result = read_result(path)
    row = first_row(result)
    assert result.status == "complete"
    assert row.examples.n == LIMIT
    assert row.examples.n >= row.examples.base >= row.examples.valid > 0
    assert row.recovery.n == row.examples.valid == len(read_records(path.parent))
    assert row.controls.nothing.k == 0
    assert row.features
    written = path.stat()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout == done.stdout
    assert path.stat() == written


def test_repetition_gives_the_same_numbers(ioi: tuple[RunResult, Path], tmp_path: Path) -> None:
    first, folder = ioi
    kept = shutil.copytree(folder, tmp_path / folder.name)
    before = (kept / "result.json").stat().st_ino
    second = run(tasks=["ioi"], out=tmp_path, limit=LIMIT, force=True)
    assert (kept / "result.json").stat().st_ino != before  # it was made again
    assert [without_time(row) for row in first.rows] == [without_time(row) for row in second.rows]


def test_batch_size_changes_no_verdict(ioi: tuple[RunResult, Path], tmp_path: Path) -> None:
    others = [run(tasks=["ioi"], out=tmp_path / str(n), limit=LIMIT, batch_size=n) for n in (1, 7)]
    rows = [first_row(result) for result in (ioi[0], *others)]
    assert len({(row.examples.valid, row.recovery.k, row.constrained.k) for row in rows}) == 1


def test_prompts_do_not_reach_the_disk(ioi: tuple[RunResult, Path]) -> None:
    _, folder = ioi
    names = json.loads(
        (Path(str(resources.files("saebench_recovery.tasks"))) / "data" / "ioi.json").read_text()
    )["names"]
    for file in ("result.json", "run.json", "records.jsonl", "chunks.jsonl"):
        text = (folder / file).read_text()
        assert not [name for name in names if f" {name}" in text]


def test_killed_runs_end_bit_identical(tmp_path: Path) -> None:
    """SIGKILL at any moment; one flip a chunk, so that there is much to lose."""
    words = ["run", "--task", "ioi", "--limit", str(LIMIT), "--batch-size", "1"]
    command = [sys.executable, "-m", "saebench_recovery", *words]
    whole = run(tasks=["ioi"], out=tmp_path / "whole", limit=LIMIT, batch_size=1)
    place = tmp_path / "parts" / whole.identity
    log = place / "chunks.jsonl"
    for wanted in (1, 3, 6):
        child = subprocess.Popen([*command, "--out", str(tmp_path / "parts")])
        while child.poll() is None and not (log.exists() and log.read_text().count("\n") >= wanted):
            time.sleep(0.02)
        child.kill()
        child.wait()
        assert log.read_text().count("\n") >= wanted
    again = run(tasks=["ioi"], out=tmp_path / "parts", limit=LIMIT, batch_size=1)
    assert without_time(first_row(again)) == without_time(first_row(whole))
    written = [f"evidence/{i:05d}.safetensors" for i in range(first_row(whole).examples.valid)]
    assert len(written) > 6
    for name in ("records.jsonl", *written):
        assert (place / name).read_bytes() == (
            tmp_path / "whole" / whole.identity / name
        ).read_bytes()


def test_evidence_belongs_to_the_records(ioi: tuple[RunResult, Path]) -> None:
    result, folder = ioi
    chunks = read_evidence(folder, "ioi", "orthogonal")
    records = [record for chunk in chunks for record in chunk.records]
    assert records == read_records(folder)
    assert len(records) == first_row(result).recovery.n


@pytest.mark.parametrize("keep_text", [False, True])
def test_generated_texts_stand_in_their_own_file_or_nowhere(
    tmp_path: Path, keep_text: bool
) -> None:
    few = {"requests": 6, "selection_requests": 24, "retain_requests": 4}
    result = run(
        tasks=["refusal"],
        task_config=few,
        keep_text=keep_text,
        budget_unit="relative",
        out=tmp_path,
    )
    assert first_row(result).recovery.k > 0
    found = (tmp_path / result.identity).rglob("*")
    files = {f.name: f.read_text("latin-1") for f in found if f.is_file()}
    texts = [json.loads(line) for line in files.pop("texts.jsonl", "").splitlines()]
    assert len(texts) == (first_row(result).examples.valid if keep_text else 0)
    for text in texts:
        assert text["clean"].startswith(" Sure, here is how to")
        assert "I'm sorry" in text["defended"] or "I cannot" in text["defended"]
        assert text["prompt"].startswith("<bos>")
    for content in files.values():
        assert "here is how" not in content
        assert not any(said in content for t in texts for said in t.values() if " " in said)


def test_no_valid_flips_is_a_row_of_nulls_with_a_flag(tmp_path: Path) -> None:
    row = first_row(
        run(tasks=["ioi"], out=tmp_path, limit=LIMIT, defense_config={"multiplier": 1.0})
    )
    assert row.examples.valid == 0
    assert row.recovery.rate is row.constrained.rate is row.fidelity.mean is None
    assert row.flag_names == ("changes-nothing", "no-valid-flips")


def test_sae_of_another_width_is_refused(copied: Path, tmp_path: Path) -> None:
    for file in copied.rglob("sae_weights.safetensors"):
        weights = load_file(file)
        narrow = {
            "W_enc": weights["W_enc"][:-1],
            "W_dec": weights["W_dec"][:, :-1],
            "b_dec": weights["b_dec"][:-1],
        }
        save_file({k: v.contiguous() for k, v in {**weights, **narrow}.items()}, file)
        config = json.loads(file.with_name("cfg.json").read_text())
        config["d_in"] -= 1
        file.with_name("cfg.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="it was trained for another model"):
        run(tasks=["ioi"], out=tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_nan_in_the_model_is_refused(copied: Path, tmp_path: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN"):
        run(tasks=["ioi"], out=tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_missing_weights_are_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        run(tasks=["ioi"], out=tmp_path / "runs")
