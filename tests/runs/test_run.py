"""A run is checked before it starts, stored task by task, continued, and never repeated."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Defense
from saebench_recovery.registry import register_defense
from saebench_recovery.results.store import RESULT, TEXTS, RunFolder, read_examples, read_result
from saebench_recovery.runs.run import run
from tests.fakes import TASKS, Engine


def folder_of(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


def test_run_stores_all_tasks(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    assert [row.task for row in result.rows] == list(TASKS) == engine.evaluated
    assert result.status == "complete"
    folder = tmp_path / result.identity
    assert read_result(folder) == result
    assert {example.task for example in read_examples(folder)} == set(TASKS)
    with safe_open(folder / "perturbations.safetensors", "pt") as tensors:
        assert set(tensors.keys()) == {f"{task}/delta" for task in TASKS}


def test_repeated_run_computes_nothing(engine: Engine, tmp_path: Path) -> None:
    first = run(out=tmp_path)
    written = (tmp_path / first.identity / RESULT).stat()
    assert run(out=tmp_path) == first
    assert engine.evaluated == list(TASKS)
    assert (tmp_path / first.identity / RESULT).stat() == written


def test_force_repeats(engine: Engine, tmp_path: Path) -> None:
    run(out=tmp_path)
    run(out=tmp_path, force=True)
    assert engine.evaluated == 2 * list(TASKS)


def test_partial_run_continues_with_what_is_missing(engine: Engine, tmp_path: Path) -> None:
    def fail_at_beta(task: str) -> None:
        if task == "beta":
            raise UserError("the model gives NaN")

    engine.before = fail_at_beta
    with pytest.raises(UserError, match="NaN"):
        run(out=tmp_path)
    partial = read_result(folder_of(tmp_path))
    assert (partial.status, [row.task for row in partial.rows]) == ("partial", ["alpha"])

    engine.before = lambda task: None
    result = run(out=tmp_path)
    assert engine.evaluated == list(TASKS)
    assert result.status == "complete"
    assert result.rows[0] == partial.rows[0]
    assert result.provenance.seconds >= partial.provenance.seconds
    assert len(read_examples(tmp_path / result.identity)) == 300


def test_leftovers_of_an_unfinished_task_are_dropped(engine: Engine, tmp_path: Path) -> None:
    """A kill between the writes leaves examples that `result.json` does not name."""
    result = run(out=tmp_path)
    file = tmp_path / result.identity / RESULT
    cut = result.model_copy(update={"status": "partial", "rows": result.rows[:1]})
    file.write_text(cut.model_dump_json())
    again = run(out=tmp_path)
    assert engine.evaluated == [*TASKS, "beta", "gamma"]
    ids = [example.id for example in read_examples(tmp_path / again.identity)]
    assert len(ids) == len(set(ids)) == 300


def test_texts_are_kept_only_on_request(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    folder = tmp_path / result.identity
    assert not any("secret" in file.read_text("latin-1") for file in folder.iterdir())
    with pytest.raises(UserError, match=r"has no texts of what is done already.*--force"):
        run(out=tmp_path, keep_text=True)
    again = run(out=tmp_path, keep_text=True, force=True)
    assert again.identity == result.identity
    texts = RunFolder(tmp_path, result.identity).finished_texts(TASKS)
    assert [(text.task, text.prompt) for text in texts] == [(task, "secret") for task in TASKS]
    run(out=tmp_path, force=True)
    assert not (folder / TEXTS).exists()


def test_texts_of_a_continued_run_are_complete(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path, keep_text=True)
    folder = RunFolder(tmp_path, result.identity)
    cut = result.model_copy(update={"status": "partial", "rows": result.rows[:1]})
    folder.result.write_text(cut.model_dump_json())
    run(out=tmp_path, keep_text=True)
    assert [text.task for text in folder.finished_texts(TASKS)] == list(TASKS)


def test_killed_at_any_moment_nothing_is_half_written(engine: Engine, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, run(out=tmp_path).identity)

    def run_for_ever() -> None:
        while True:
            run(out=tmp_path, force=True)

    for attempt in range(10):
        child = multiprocessing.get_context("fork").Process(target=run_for_ever)
        child.start()
        time.sleep(random.Random(attempt).uniform(0.05, 0.8))
        child.kill()  # SIGKILL
        child.join()
        result = folder.load()
        if result is not None:  # a kill may also come before the first task is stored
            done = [row.task for row in result.rows]
            examples, perturbations = folder.finished(done)
            assert len(examples) == 100 * len(done)
            assert set(perturbations) == {f"{task}/delta" for task in done}
            assert (result.status == "complete") == (len(done) == len(TASKS))
    assert run(out=tmp_path).status == "complete"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a result file"),
        ("[]", "not a result file"),
        ('{"schema_version": 99}', "schema version 99, newer than 1: upgrade"),
        ('{"schema_version": 1}', "does not follow schema version 1"),
    ],
)
def test_unreadable_result_is_refused(
    engine: Engine, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / run(out=tmp_path).identity / RESULT
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        run(out=tmp_path)
    assert file.read_text() == content
    assert run(out=tmp_path, force=True).status == "complete"


def test_broken_side_files_are_refused_on_resume(engine: Engine, tmp_path: Path) -> None:
    result = run(out=tmp_path)
    folder = RunFolder(tmp_path, result.identity)
    cut = result.model_copy(update={"status": "partial", "rows": result.rows[:1]})
    folder.result.write_text(cut.model_dump_json())
    (folder.path / "perturbations.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="--force"):
        run(out=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"defense": "clmp"}, "unknown defense 'clmp'; did you mean 'clamp'"),
        ({"attack": "orthogonl"}, "did you mean 'orthogonal'"),
        ({"tasks": ["alpah"]}, "unknown task 'alpah'; did you mean 'alpha'"),
        ({"tasks": ["ioi"]}, "does not have task 'ioi'.*known: alpha, beta, gamma"),
        ({"defense_config": {"latnts": 3}}, "unknown key 'latnts'; did you mean 'latents'"),
        ({"defense_config": {"latents": 0}}, "latents is 0: .*greater than or equal to 1"),
        ({"attack_config": {"nope": 3}}, "attack 'orthogonal': unknown key 'nope'"),
        ({"task_config": {"nope": 3}}, "task 'alpha': unknown key 'nope'; allowed: none"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"threat_model": "none"}, "threat_model is 'none'"),
        ({"limit": 0}, "limit is 0"),
        ({"plugins": ["/nowhere/mine.py"]}, "does not exist"),
    ],
)
def test_bad_input_costs_and_leaves_nothing(
    engine: Engine, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(out=tmp_path / "runs", **wrong)
    assert "\n" not in str(caught.value)
    assert engine.evaluated == []
    assert not list(tmp_path.glob("runs/*"))


def test_unwritable_output_is_found_before_the_work(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        run(out=tmp_path / "file" / "runs")
    assert engine.evaluated == []


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
    assert str(tmp_path) not in json.dumps(result.model_dump(mode="json"))
    assert str(Path.home()) not in result.model_dump_json()
