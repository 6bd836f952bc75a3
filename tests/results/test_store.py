"""Files appear whole under their final name or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.store import (
    RunFolder,
    check_writable,
    read_examples,
    read_result,
    write_atomically,
)
from saebench_recovery.schema import Provenance, Rate, RunResult
from tests.fakes import example_row, rate, row


def result(status: str = "complete") -> RunResult:
    made_by = Provenance(
        packages={},
        git_commit=None,
        target_hash="",
        data_hash="",
        device="cpu",
        dtype="float32",
        seconds=1,
    )
    return RunResult.model_validate(
        {"status": status, "identity": "abc", "spec": {}, "provenance": made_by, "rows": (row(),)}
    )


def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write to .*: No space left on device"):
        RunFolder(tmp_path, "abc").save(result(), [], {})


def test_round_trip(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "abc")
    assert folder.load() is None
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"alpha/delta": shared.T, "beta/delta": shared.clone()}
    lines = [example_row("alpha", "a/1"), example_row("beta", "b/1")]
    folder.save(result(), lines, tensors)
    assert folder.load() == result()
    assert read_result(folder.path) == read_result(folder.result) == result()
    examples, perturbations = folder.finished(["alpha"])
    assert examples == lines[:1]
    assert list(perturbations) == ["alpha/delta"]
    assert torch.equal(perturbations["alpha/delta"], shared.T)


def test_missing_or_broken_examples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_examples(tmp_path)
    (tmp_path / "examples.jsonl").write_text('{"task": "al')
    with pytest.raises(UserError, match=r"is broken; .*--force"):
        read_examples(tmp_path)


@pytest.mark.parametrize("place", ["file/runs", "file"])
def test_unwritable_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        check_writable(tmp_path / place)


def test_empty_denominator_is_null_and_nan_is_refused() -> None:
    assert rate(0, 0).rate is None
    assert '"rate":null' in rate(0, 0).model_dump_json()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            Rate(k=0, n=1, rate=0, low=0, high=bad)


def test_perturbations_of_a_finished_variant_are_kept(tmp_path: Path) -> None:
    """The label of a task's variant has a "/" of its own."""
    folder = RunFolder(tmp_path, "abc")
    named = {f"tpp/{label}/delta": torch.zeros(1) for label in ("nurse", "pilot")}
    folder.save(result(), [example_row("tpp/nurse", "1"), example_row("tpp/pilot", "2")], named)
    examples, perturbations = folder.finished(["tpp/nurse"])
    assert [example.id for example in examples] == ["1"]
    assert set(perturbations) == {"tpp/nurse/delta"}
