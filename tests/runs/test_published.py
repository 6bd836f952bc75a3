"""Entries that are sent to others hold; nothing else is admitted, and nothing private leaves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery import run
from saebench_recovery.base.errors import UserError
from saebench_recovery.results.chunks import RunJournal
from saebench_recovery.results.leaderboard import build
from saebench_recovery.results.published import (
    copy_entry,
    entries_in,
    publish,
    read_entry,
    strays,
)
from saebench_recovery.runs.fingerprint import harness_fingerprint
from saebench_recovery.runs.verify import identity, recompute
from saebench_recovery.runs.verify import verify as module
from saebench_recovery.runs.verify.verify import hold_together, runs_in, verify
from saebench_recovery.targets.loading import load_target
from tests.cli.test_cli import saebench
from tests.forged import Forger, edited, put

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks, of a few flips each."""
    out = tmp_path_factory.mktemp("genuine")
    few: dict[str, Any] = {"attack_config": {"steps": 3}, "keep_text": True}
    return out / run(tasks=["ioi", "unlearning"], limit=4, out=out, **few).identity


@pytest.fixture
def board(genuine: Path, tmp_path: Path) -> Path:
    publish(genuine, tmp_path / "board")
    return tmp_path / "board"


@pytest.fixture
def on_paper(monkeypatch: Patch) -> None:
    """Nothing is fitted and replayed: what is stored is held to itself alone."""
    monkeypatch.setattr(module, "recomputed", lambda *_: (0, 0))


def lines(capsys: Capture) -> str:
    return capsys.readouterr().out


# --- publishing ---------------------------------------------------------------------------------


def test_an_entry_for_each_row_with_all_that_it_rests_on(genuine: Path, board: Path) -> None:
    files = entries_in(board)
    assert [read_entry(file).entry.row.task for file in files] == ["ioi", "unlearning"]
    for file in files:
        name = r"organism-\w+-clamp-orthogonal-reclamp-[0-9a-f]{12}\.json"
        assert re.fullmatch(name, file.name)
        assert file.name == read_entry(file).file_name
    assert runs_in(board) == files
    assert list(strays(board)) == []
    boards = build([board / "evidence" / genuine.name])
    assert [b.task for b in boards] == ["ioi", "unlearning"]


def test_neither_texts_nor_paths_leave_the_machine(genuine: Path, board: Path) -> None:
    assert (genuine / "texts.jsonl").exists()
    published = [file for file in board.rglob("*") if file.is_file()]
    assert not [file for file in published if file.name in ("texts.jsonl", ".lock")]
    for file in published:
        assert str(genuine.parent).encode() not in file.read_bytes()
        assert str(Path.home()).encode() not in file.read_bytes()


@pytest.mark.parametrize("path", ["/home/me/model.yaml", "~/model.yaml", "gpt2+/my/sae@blocks.1"])
def test_a_path_of_this_machine_is_refused(
    path: str, genuine: Path, tmp_path: Path, on_paper: None
) -> None:
    folder = Path(shutil.copytree(genuine, tmp_path / "run"))
    forger = Forger(folder)
    forger.spec("task_config", {"data": path})
    forger.seal()
    with pytest.raises(UserError, match="names a path of this machine") as caught:
        publish(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_broken_evidence_is_not_published(genuine: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(genuine, tmp_path / "run"))
    file = folder / "evidence" / "00000.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\1\0")
    with pytest.raises(UserError, match="is broken; repeat the run"):
        publish(folder, tmp_path / "out")
    file.unlink()
    with pytest.raises(UserError, match="cannot read"):
        publish(folder, tmp_path / "out")


OWN = ("result.json", "run.json", "records.jsonl", "chunks.jsonl", "evidence")


@pytest.mark.parametrize("name", [*OWN, "evidence/00000.safetensors"])
def test_a_link_is_no_file_of_a_run(
    name: str, genuine: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(genuine, tmp_path / "run"))
    elsewhere = (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(elsewhere)
    for words in (["verify"], ["publish", "--out", str(tmp_path / "out")], ["show"]):
        assert saebench(monkeypatch, *words, str(folder)) == 2
        said = capsys.readouterr().err
        assert f"{str(folder / name)!r}: a symbolic link" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="a symbolic link"):
        RunJournal(folder)  # which would write where it leads


def test_nor_of_an_entry(board: Path, tmp_path: Path) -> None:
    file, *_ = entries_in(board)
    (evidence,) = (board / "evidence").glob("*/evidence/00000.safetensors")
    for one in (evidence, file):
        elsewhere = one.rename(tmp_path / "elsewhere")
        one.symlink_to(elsewhere)
        with pytest.raises(UserError, match="a symbolic link"):
            copy_entry(file, tmp_path / "out")
        elsewhere.rename(one)
    assert copy_entry(file, tmp_path / "out").is_file()


def test_a_folder_may_stand_behind_a_link(
    genuine: Path, board: Path, tmp_path: Path, on_paper: None
) -> None:
    (tmp_path / "run").symlink_to(genuine)
    (tmp_path / "link").symlink_to(board)
    assert verify(tmp_path / "run").holds
    assert all(hold_together(file).holds for file in runs_in(tmp_path / "link"))
    assert publish(tmp_path / "run", tmp_path / "out")


def test_other_evidence_of_the_same_run_stays(genuine: Path, board: Path, tmp_path: Path) -> None:
    publish(genuine, board)  # once more is nothing new
    folder = Path(shutil.copytree(genuine, tmp_path / "again"))
    for name in ("result.json", "run.json"):
        edited(folder / name, lambda document: put(document, "provenance/seconds", 9.0))
    with pytest.raises(UserError, match="holds other evidence of this run"):
        publish(folder, board)


# --- verifying ----------------------------------------------------------------------------------


def test_an_entry_holds_by_its_own_task(board: Path, monkeypatch: Patch) -> None:
    target = load_target("organism", "cpu")
    monkeypatch.setattr(recompute, "load_target", lambda *_, **__: target)
    found = verify(entries_in(board)[0])
    assert (found.exit_code, found.notes) == (0, ())
    assert found.flips == found.stored_flips == 4


EDITS: list[tuple[str, Any, str]] = [
    ("entry/row/measures/recovery/k", 0, "entry.row.measures.recovery.k"),
    ("entry/row/budget", 0.1, "entry.row.budget"),
    ("entry/row/task", "tpp", "no row of the run"),
    ("entry/row/defense", "ablation", "file name"),
    ("entry/command", "rm -rf .", "entry.command"),
    ("entry/config/defense/latents", 99, "entry.config.defense.latents"),
    ("entry/provenance/git_commit", "0" * 40, "entry.provenance.git_commit"),
    ("entry/standard_suite", True, "entry.standard_suite"),
    ("evidence/records.jsonl", "0" * 64, "evidence.records.jsonl"),
]


@pytest.mark.parametrize(("place", "value", "field"), EDITS)
def test_an_edited_entry_is_named(
    board: Path, on_paper: None, place: str, value: Any, field: str
) -> None:
    file = entries_in(board)[0]
    edited(file, lambda document: _put(document, place, value))
    found = verify(file)
    assert found.exit_code == 1
    assert field in "\n".join(m.line for m in found.mismatches)


def _put(document: Any, place: str, value: Any) -> None:
    if place.startswith("evidence/"):
        document["evidence"][place.removeprefix("evidence/")] = value
    else:
        put(document, place, value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("entry/identity", "../../../etc"),
        ("evidence/../../x", "0" * 64),
        ("schema_version", 1),
        ("schema_version", 99),
        ("entry/row", None),
    ],
)
def test_an_entry_of_another_form_is_one_line(board: Path, place: str, value: Any) -> None:
    file = entries_in(board)[0]
    edited(file, lambda document: _put(document, place, value))
    with pytest.raises(UserError) as caught:
        verify(file)
    assert "\n" not in str(caught.value)


# --- admission ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_paper")
class TestAdmission:
    def test_what_holds_is_taken_over(
        self, board: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        out = tmp_path / "leaderboards"
        assert saebench(monkeypatch, "leaderboard", "add", str(board), "--out", str(out)) == 0
        assert lines(capsys).count(": holds;") == 2
        assert [file.name for file in entries_in(out)] == [f.name for f in entries_in(board)]
        assert saebench(monkeypatch, "leaderboard", "check", str(out)) == 0
        assert lines(capsys).count(": holds;") == 2

    def test_what_does_not_hold_is_left_out(
        self, board: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        first, second = entries_in(board)
        edited(first, lambda document: put(document, "entry/row/seed", 7))
        out = tmp_path / "leaderboards"
        assert saebench(monkeypatch, "leaderboard", "add", str(board), "--out", str(out)) == 1
        assert "does not hold: ioi entry.row.seed: stored 7, found 0" in lines(capsys)
        assert [file.name for file in entries_in(out)] == [second.name]

    def test_a_file_that_cannot_be_read_does_not_hide_the_others(
        self, board: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        entries_in(board)[0].write_text("{")
        assert saebench(monkeypatch, "leaderboard", "check", str(board)) == 2
        said = lines(capsys)
        assert "could not be checked: " in said
        assert said.count(": holds;") == 1

    def test_a_sample_of_entries_is_replayed_and_all_are_held_to_their_records(
        self, board: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        replayed: list[Path] = []

        def recomputed(work: recompute.Recomputation, *_: Any) -> tuple[int, int]:
            replayed.append(work.stored.folder)
            return 4, 0

        monkeypatch.setattr(module, "recomputed", recomputed)
        words = ["leaderboard", "check", str(board), "--entries", "1", "--sample-seed", "3"]
        assert saebench(monkeypatch, *words) == 0
        said = lines(capsys)
        assert len(replayed) == 1
        assert said.startswith("1 of 2 entries are replayed, with --sample-seed 3\n")
        assert sorted(re.findall(r"holds; (\d) of \d flips replayed", said)) == ["0", "4"]
        assert saebench(monkeypatch, *words[:4], "0") == 0
        assert len(replayed) == 1
        assert lines(capsys).count("holds; 0 of") == 2
        for file in entries_in(board):
            edited(file, lambda document: put(document, "entry/row/seed", 7))
        assert saebench(monkeypatch, *words) == 1
        assert lines(capsys).count("entry.row.seed: stored 7, found 0") == 2

    def test_what_belongs_to_no_entry_is_named(
        self, board: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        (board / "evidence" / "0123456789abcdef").mkdir()
        (board / "entries" / "notes.txt").touch()
        assert saebench(monkeypatch, "leaderboard", "check", str(board)) == 1
        said = lines(capsys)
        for name in ("evidence/0123456789abcdef", "entries/notes.txt"):
            assert f"does not hold: {name} belongs to no entry" in said

    def test_none_is_fine_and_said(
        self, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        assert saebench(monkeypatch, "leaderboard", "check", str(tmp_path)) == 0
        assert lines(capsys) == f"{tmp_path}: no entries\n"
        assert saebench(monkeypatch, "leaderboard", "check", str(tmp_path / "nowhere")) == 2

    def test_a_run_is_no_entry(
        self, genuine: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
    ) -> None:
        out = ["--out", str(tmp_path)]
        assert saebench(monkeypatch, "leaderboard", "add", str(genuine), *out) == 2
        assert "`saebench publish` makes entries" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_the_ranking_needs_no_word(genuine: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    for number, words in enumerate((["rank"], [])):
        out = tmp_path / str(number)
        assert saebench(monkeypatch, "leaderboard", *words, str(genuine), "--out", str(out)) == 0
        assert json.loads((out / "organism-ioi.json").read_text())["task"] == "ioi"
    assert saebench(monkeypatch, "leaderboard", "--out", str(out), str(genuine)) == 0


def test_the_code_is_hashed_once_for_all_entries(
    board: Path, on_paper: None, monkeypatch: Patch
) -> None:
    hashed: list[str] = []
    of_code = harness_fingerprint

    def counting() -> str:
        hashed.append(of_code())
        return hashed[-1]

    identity._harness.cache_clear()
    monkeypatch.setattr(identity, "harness_fingerprint", counting)
    assert not any(hold_together(file).mismatches for file in entries_in(board))
    assert len(hashed) == 1
