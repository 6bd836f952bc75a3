"""A run is checked before it starts, stored chunk by chunk, continued, and never repeated."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Defense
from saebench_recovery.registry import register_defense
from saebench_recovery.results.folder import LOCK, RunFolder
from saebench_recovery.results.store import RESULT, STATE, TEXTS, read_records, read_result
from saebench_recovery.runs.run import run
from tests.fake_engine import CHUNKS, FLIPS, Engine
from tests.fakes import TASKS

ALL = CHUNKS * len(TASKS)


def contents(folder: Path) -> dict[str, str]:
    """Every file of a run, without the seconds that it took."""
    return {
        str(file.relative_to(folder)): re.sub(
            r'"seconds": ?[\d.e-]+', "", file.read_text("latin-1")
        )
        for file in folder.rglob("*")
        if file.is_file() and file.name != LOCK
    }


def stop_at(engine: Engine, count: int, error: BaseException) -> None:
    """Interrupt the run once it has scored so many chunks."""

    def before(task: str, number: int) -> None:
        if len(engine.chunks) == count:
            engine.before = lambda task, number: None
            raise error

    engine.before = before


def test_run_stores_all_tasks(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    assert [row.task for row in result.rows] == list(TASKS) == engine.evaluated
    assert result.status == "complete"
    folder = tmp_path / result.identity
    assert read_result(folder) == read_result(folder / RESULT) == result
    assert [r.task for r in read_records(folder)] == [t for t in TASKS for _ in range(100)]
    names = {"run.json", "records.jsonl", "chunks.jsonl", RESULT, LOCK, "evidence"}
    assert {file.name for file in folder.iterdir()} == names


def test_repeated_run_computes_and_writes_nothing(engine: Engine, tmp_path: Path) -> None:
    first = run(out=tmp_path)
    before = {file: file.stat() for file in tmp_path.rglob("*")}
    assert run(out=tmp_path) == first
    assert engine.evaluated == list(TASKS)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == {
        file: found.st_mtime_ns for file, found in before.items()
    }


def test_complete_run_on_a_read_only_disk_is_read(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(out=tmp_path)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    opened = os.open

    def read_only(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return opened(path, flags, *arguments, **options)

    (tmp_path / first.identity / ".left.over").touch()
    monkeypatch.setattr(os, "open", read_only)
    for name in ("mkdir", "replace", "unlink", "rename"):
        monkeypatch.setattr(os, name, refuse)
    assert run(out=tmp_path) == first


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """The identity and the files of a run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        Engine().install(patch.setitem)
        identity = run(out=out).identity
    return identity, contents(out / identity)


@pytest.mark.parametrize("done", range(ALL + 1))
def test_interrupted_anywhere_it_ends_bit_identical(
    engine: Engine, tmp_path: Path, whole: tuple[str, dict[str, str]], done: int
) -> None:
    identity, files = whole
    stop_at(engine, done, UserError("the model gives NaN"))
    if done < ALL:
        with pytest.raises(UserError, match="NaN"):
            run(out=tmp_path)
        assert not (tmp_path / identity / RESULT).exists()
    assert run(out=tmp_path).identity == identity
    assert len(engine.chunks) == ALL  # none twice
    assert contents(tmp_path / identity) == files


def test_seconds_add_up(engine: Engine, tmp_path: Path) -> None:
    stop_at(engine, CHUNKS, UserError("the model gives NaN"))
    with pytest.raises(UserError):
        run(out=tmp_path)
    (state,) = tmp_path.glob(f"*/{STATE}")
    partial = json.loads(state.read_text())
    assert [facts["task"] for facts in partial["facts"]] == ["alpha"]
    assert run(out=tmp_path).provenance.seconds >= partial["provenance"]["seconds"] > 0


def test_force_repeats_and_replaces_only_at_the_end(engine: Engine, tmp_path: Path) -> None:
    first = run(out=tmp_path)
    before = contents(tmp_path / first.identity)
    stop_at(engine, ALL + 5, UserError("cannot write: No space left on device"))
    with pytest.raises(UserError, match="No space"):
        run(out=tmp_path, force=True)
    assert contents(tmp_path / first.identity) == before
    assert run(out=tmp_path) == first
    run(out=tmp_path, force=True)
    assert engine.evaluated == [*TASKS, "alpha", *TASKS]
    assert [folder.name for folder in tmp_path.iterdir()] == [first.identity]


def test_broken_result_is_refused_until_force(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / run(out=tmp_path).identity / RESULT
    file.write_text("{")
    with pytest.raises(UserError, match="not a result file"):
        run(out=tmp_path)
    assert file.read_text() == "{"
    assert run(out=tmp_path, force=True).status == "complete"
    assert read_result(file).status == "complete"


def test_texts_are_kept_only_on_request(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    folder = tmp_path / result.identity
    assert not any("secret" in content for content in contents(folder).values())
    with pytest.raises(UserError, match=r"has no texts of what is done already.*--force"):
        run(out=tmp_path, keep_text=True)
    again = run(out=tmp_path, keep_text=True, force=True)
    assert again.identity == result.identity
    assert (folder / TEXTS).read_text().count("secret") == ALL * FLIPS
    assert run(out=tmp_path, keep_text=True) == again
    run(out=tmp_path, force=True)
    assert not (folder / TEXTS).exists()


# --- other processes --------------------------------------------------------------------------


def test_a_second_writer_is_told_who_writes(engine: Engine, tmp_path: Path) -> None:
    refused: list[str] = []

    def second(task: str, number: int) -> None:
        engine.before = lambda task, number: None
        for force in (False, True):
            with pytest.raises(UserError) as caught:
                run(out=tmp_path, force=force)
            refused.append(str(caught.value))

    engine.before = second
    assert run(out=tmp_path).status == "complete"
    assert len(engine.chunks) == ALL
    for line in refused:
        assert re.search(rf"is being written by process {os.getpid()} on \S+ since 20\S+ ", line)


def test_leftovers_of_a_dead_process_are_cleared(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    folder = tmp_path / result.identity
    before = contents(folder)
    for name in (f".{result.identity}.new/evidence", f".{result.identity}.old"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".result.json.abc", "evidence/.00003.safetensors.abc"):
        (folder / name).touch()
    assert run(out=tmp_path) == result
    assert contents(folder) == before
    (folder / ".writer.json").write_text("{}")  # of one that was killed just before its end
    assert run(out=tmp_path) == result
    assert contents(folder) == before
    assert [file.name for file in tmp_path.iterdir()] == [result.identity]


def test_a_kill_between_the_two_renamings_loses_nothing(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    (tmp_path / result.identity).rename(tmp_path / f".{result.identity}.old")
    (tmp_path / f".{result.identity}.new").mkdir()
    assert run(out=tmp_path) == result
    assert [file.name for file in tmp_path.iterdir()] == [result.identity]
    assert engine.evaluated == list(TASKS)


def test_killed_at_any_moment_nothing_is_half_written(engine: Engine, tmp_path: Path) -> None:
    whole = run(out=tmp_path / "whole")
    expected = contents(tmp_path / "whole" / whole.identity)
    folder = RunFolder(tmp_path, whole.identity)

    def run_for_ever() -> None:
        while True:
            run(out=tmp_path)
            run(out=tmp_path, force=True)

    for attempt in range(10):
        child = multiprocessing.get_context("fork").Process(target=run_for_ever)
        child.start()
        time.sleep(random.Random(attempt).uniform(0.02, 0.6))
        child.kill()  # SIGKILL
        child.join()
        if folder.load() is not None:
            assert contents(folder.path) == expected
    run(out=tmp_path)
    assert contents(folder.path) == expected


@pytest.mark.parametrize(
    ("done", "force", "line"),
    [
        (5, False, rf"{5 * FLIPS} flips are kept in '.*'; the same command goes on from there"),
        (0, False, "nothing new is kept$"),
        (5, True, "nothing new is kept; an earlier result is as it was"),
    ],
)
def test_an_interrupt_says_what_is_kept(
    engine: Engine, tmp_path: Path, done: int, force: bool, line: str
) -> None:
    stop_at(engine, done, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match=line):
        run(out=tmp_path, force=force)
    assert len(list(tmp_path.iterdir())) == (done > 0 and not force)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"defense": "clmp"}, "unknown defense 'clmp'; did you mean 'clamp'"),
        ({"attack": "orthogonl"}, "did you mean 'orthogonal'"),
        ({"tasks": ["alpah"]}, "unknown task 'alpah'; did you mean 'alpha'"),
        ({"tasks": ["ioi"]}, "does not have task 'ioi'.*known: alpha, beta, gamma"),
        ({"tasks": [3]}, "run: tasks.0 is 3"),
        ({"defence": "clamp"}, "run: unknown key 'defence'; did you mean 'defense'"),
        ({"defense_config": {"latnts": 3}}, "unknown key 'latnts'; did you mean 'latents'"),
        ({"defense_config": {"latents": 0}}, "latents is 0; allowed: a whole number at least 1"),
        ({"attack_config": {"nope": 3}}, "attack 'orthogonal': unknown key 'nope'"),
        ({"task_config": {"nope": 3}}, "task 'alpha': unknown key 'nope'; allowed: none"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"threat_model": "none"}, "threat_model is 'none'"),
        ({"limit": 0}, "limit is 0"),
        ({"limits": {"drift": -1}}, "limits.drift is -1"),
        ({"plugins": ["/nowhere/mine.py"]}, "does not exist"),
    ],
)
def test_bad_input_costs_and_leaves_nothing(
    engine: Engine, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(out=tmp_path / "runs", **wrong)
    assert "\n" not in str(caught.value)
    assert engine.chunks == []
    assert not list(tmp_path.glob("runs/*"))


def test_only_four_go_without_their_names(engine: Engine, tmp_path: Path) -> None:
    assert run("organism", "clamp", "orthogonal", ["beta"], out=tmp_path).rows[0].task == "beta"
    with pytest.raises(UserError, match="only target, defense, attack, tasks"):
        run("organism", "clamp", "orthogonal", None, "post", out=tmp_path)


@pytest.mark.parametrize("kind", ["file", "loop"])
def test_unwritable_output_is_found_before_the_work(
    engine: Engine, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        run(out=tmp_path / "file" / "runs")
    place = tmp_path / run(out=tmp_path / "first").identity
    place.symlink_to(place) if kind == "loop" else place.touch()
    with pytest.raises(UserError, match="cannot write"):
        run(out=tmp_path)
    assert len(engine.chunks) == ALL


def test_class_of_the_same_process(engine: Engine, tmp_path: Path) -> None:
    class Mine(Defense):
        def intervene(self, site: Any, resid_BTD: Any) -> Any:
            return resid_BTD

    with pytest.raises(UserError, match="not registered"):
        run(defense=Mine, out=tmp_path)
    registered = register_defense("of-this-process")(Mine)
    result = run(defense=registered, out=tmp_path)
    assert result.rows[0].defense == "of-this-process"


def test_target_settings_lie_under_the_users(engine: Engine, tmp_path: Path) -> None:
    resolved = run(out=tmp_path, defense_config={"positive_only": False}).spec["resolved"]
    assert resolved["alpha"]["defense"]["latents"] == 7  # the fake target's own
    assert resolved["beta"]["defense"]["latents"] == 32  # the defense's
    assert resolved["alpha"]["defense"]["positive_only"] is False
    user = run(out=tmp_path, defense_config={"latents": 9}).spec["resolved"]
    assert user["alpha"]["defense"]["latents"] == 9


def test_result_has_no_path_of_this_machine(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    for content in contents(tmp_path / result.identity).values():
        assert str(tmp_path) not in content
        assert str(Path.home()) not in content
