"""Files appear whole under their final name or not at all, and are held to what they say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.chunks import RunJournal, evidence_tags, read_evidence, read_log
from saebench_recovery.results.store import (
    FAILURES,
    RECORDS,
    RESULT,
    STATE,
    TEXTS,
    check_writable,
    read_records,
    read_result,
    read_state,
    write_atomically,
    write_model,
)
from saebench_recovery.schema import PerturbationKind, Rate, RunState
from tests.fake_engine import FLIPS, chunk
from tests.fakes import facts, made, rate, row, run_result

NAMES = [("alpha", "orthogonal"), ("alpha", "gcg"), ("tpp/nurse", "orthogonal")]


def full(handle: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two chunks of each of three searches."""
    journal = RunJournal(tmp_path, keep_texts=True)
    for task, attack in NAMES:
        for number in range(2):
            journal.append(task, attack, chunk(task, attack, number))
    return tmp_path


def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_full_disk_is_one_line_and_costs_the_chunk_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RunJournal(folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write to .*: No space left on device"):
            write_model(folder / RESULT, run_result(row()))
        with pytest.raises(UserError, match=r"cannot write to .*: No space left on device"):
            journal.append("alpha", "gcg", chunk("alpha", "gcg", 2))
    again = RunJournal(folder)
    assert len(again.chunks) == 6
    assert len(read_records(folder)) == 6 * FLIPS


@pytest.mark.parametrize("place", ["file/runs", "file"])
def test_unwritable_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        check_writable(tmp_path / place)


def test_what_is_appended_is_read_back(folder: Path) -> None:
    journal = RunJournal(folder)
    for task, attack in NAMES:
        expected = [chunk(task, attack, number) for number in range(2)]
        written = journal.written(task, attack)
        assert [w.records for w in written] == [c.records for c in expected]
        assert [w.attacking for w in written] == [c.attacking for c in expected]
        for found, wanted in zip(read_evidence(folder, task, attack), expected, strict=True):
            assert found.records == wanted.records
            assert torch.equal(found.tensors["delta"], wanted.tensors["delta"])
            assert found.metadata["kind"] == "residual"
    assert {record.attack for record in journal.records("alpha")} == {"orthogonal", "gcg"}
    assert read_records(folder) == journal.records("alpha") + journal.records("tpp/nurse")
    assert journal.written("alpha", "jacobian") == []


def test_the_same_chunk_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RunJournal(tmp_path / name).append("alpha", "gcg", chunk("alpha", "gcg", 1))
    one, other = (
        {f.name: f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("a", "b")
    )
    assert one == other
    # The library's own order of metadata changes with the process.
    header = one["00000.safetensors"].partition(b'"delta"')[0]
    places = [header.index(f'"{name}"'.encode()) for name in ("attack", "ids", "kind", "task")]
    assert places == sorted(places)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_cut_anywhere_at_most_one_chunk_is_lost(tmp_path: Path, data: st.DataObject) -> None:
    """What a kill leaves: the last chunk's files in any state, its line in the log not whole."""
    place = tmp_path / str(len(list(tmp_path.iterdir())))
    journal = RunJournal(place, keep_texts=True)
    journal.append("alpha", "gcg", chunk("alpha", "gcg", 0))
    before = {f: f.read_bytes() for f in place.rglob("*") if f.is_file()}
    journal.append("alpha", "gcg", chunk("alpha", "gcg", 1))
    after = {f: f.read_bytes() for f in place.rglob("*") if f.is_file()}
    for file, content in after.items():
        start = len(before.get(file, b""))
        end = len(content) - (file.name == "chunks.jsonl")
        file.write_bytes(content[: data.draw(st.integers(start, end))])
    resumed = RunJournal(place)
    assert {f: f.read_bytes() for f in place.rglob("*") if f.is_file()} == before
    resumed.append("alpha", "gcg", chunk("alpha", "gcg", 1))
    assert {f: f.read_bytes() for f in place.rglob("*") if f.is_file()} == after


@pytest.mark.parametrize("name", ["evidence/00001.safetensors", RECORDS, "chunks.jsonl", TEXTS])
def test_broken_files_are_refused_on_resume(folder: Path, name: str) -> None:
    file = folder / name
    file.write_bytes(b"x" + file.read_bytes()[1:100] + b"\n")
    with pytest.raises(UserError, match=r"(broken|cut short).*repeat the run with --force"):
        RunJournal(folder).written(*NAMES[0])


def test_failures_of_members_survive_a_kill_in_the_middle_of_a_line(folder: Path) -> None:
    RunJournal(folder).fail("alpha", "gcg", "one")
    RunJournal(folder).fail("alpha", "orthogonal", "two")
    file = folder / FAILURES
    file.write_bytes(file.read_bytes()[:-3])
    resumed = RunJournal(folder)
    assert [resumed.failure("alpha", name) for name in ("gcg", "orthogonal")] == ["one", ""]
    resumed.fail("alpha", "orthogonal", "three")
    assert RunJournal(folder).failure("alpha", "orthogonal") == "three"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(UserError, match=r"failures\.jsonl"):
        RunJournal(folder)


def test_texts_are_kept_from_the_beginning_or_not_at_all(folder: Path) -> None:
    RunJournal(folder).append("alpha", "gcg", chunk("alpha", "gcg", 2))
    assert (folder / TEXTS).read_text().count("secret") == 7 * FLIPS
    (folder / TEXTS).unlink()
    assert len(RunJournal(folder).chunks) == 7
    with pytest.raises(UserError, match=r"has no texts of what is done already.*--force"):
        RunJournal(folder, keep_texts=True)


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("ids", '["another/0"]', "does not belong to its records: it has ids"),
        ("task", "beta", "it has task 'beta', the records 'alpha'"),
        ("attack", None, "it has attack None, the records 'orthogonal'"),
        ("kind", None, "does not say what kind of perturbation it holds"),
        ("kind", "suffix", "is of kind 'suffix', but the run perturbed 'residual'"),
    ],
)
def test_evidence_of_another_kind_or_of_other_examples_is_refused(
    folder: Path, tag: str, value: str | None, message: str
) -> None:
    state = RunState(
        status="running",
        identity="abc",
        spec={},
        provenance=run_result().provenance,
        facts=(facts(perturbation=PerturbationKind(kind="residual")),),
    )
    write_model(folder / STATE, state)
    file = folder / read_log(folder)[0].evidence
    metadata = read_evidence(folder, *NAMES[0])[0].metadata
    changed = {k: v for k, v in {**metadata, tag: value}.items() if v is not None}
    save_file(load_file(file), file, changed)
    with pytest.raises(UserError, match=message) as caught:
        read_evidence(folder, *NAMES[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a result file"),
        ("[]", "not a result file"),
        ("[" * 100_000, "not a result file"),
        (f'{{"schema_version": {"9" * 5000}}}', "not a result file"),
        ('{"schema_version": true}', "not a result file"),
        ('{"schema_version": 99}', "schema version 99, newer than 2: upgrade"),
        ('{"schema_version": 1}', "schema version 1, and this .* reads 2 only: run again"),
        ('{"schema_version": 2}', "does not follow schema version 2 at status"),
    ],
)
def test_an_unreadable_result_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / RESULT).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_result(tmp_path)
    assert "\n" not in str(caught.value)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    for name in (RESULT, STATE, RECORDS, "chunks.jsonl"):
        (tmp_path / name).write_bytes(content)
    for read in (read_result, read_state, read_records, read_log):
        try:
            read(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        read_result(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        read_records(tmp_path)
    assert read_state(tmp_path) is None
    assert read_log(tmp_path) == []
    (tmp_path / STATE).touch()
    with pytest.raises(UserError, match="is not complete; repeat its command to go on"):
        read_result(tmp_path)


def test_empty_denominator_is_null_and_nan_is_refused() -> None:
    assert rate(0, 0).rate is None
    assert '"rate":null' in rate(0, 0).model_dump_json()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            made(Rate, high=bad)


def test_a_broken_header_is_not_printed(tmp_path: Path) -> None:
    file = tmp_path / "00000.safetensors"
    header = b'{"x": "' + b"a" * 100_000 + b'\xff"}'
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(
        UserError, match="no header that can be read: UnicodeDecodeError: "
    ) as caught:
        evidence_tags(file)
    assert len(str(caught.value)) < 1000
