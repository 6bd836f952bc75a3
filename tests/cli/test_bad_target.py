"""Bad models, SAEs and disks through the real command line: one line, exit code 2, nothing broken.

Further cases stand beside what they need: the hub's answers and cut downloads in
`tests/targets/test_hub_server.py`, packages in `tests/targets/test_packaged.py`, training in
`tests/cli/test_sae.py`, data in `tests/tasks/test_bad_input.py`.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from saebench_recovery.results.store import read_result
from saebench_recovery.training import train
from saebench_recovery.training.recipe import BATCH
from tests.cli.test_cli import saebench
from tests.layouts import write_model, write_sae

HOOK = "blocks.2.hook_resid_post"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder without a chat template."""
    folder = write_model(tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").unlink()
    return folder


def refused(patch: Patch, capsys: Capture, *arguments: str) -> str:
    """The one line that the command ends with, and its exit code 2."""
    assert saebench(patch, *arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def on(model: Path, sae: Path, out: Path, *more: str) -> list[str]:
    place = ["--model", str(model), "--sae", f"{sae}@{HOOK}", "--out", str(out), "--device", "cpu"]
    return ["run", "--json", "--limit", "8", "-D", "latents=4", "-A", "steps=2", *place, *more]


def write_other(folder: Path, **metadata: str) -> Path:
    cfg = json.loads((write_sae(folder, HOOK) / "cfg.json").read_text())
    cfg["metadata"].update(metadata)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def test_no_chat_template_where_one_is_needed(
    model: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    asked = on(model, write_sae(tmp_path / "sae", HOOK), tmp_path, "--task", "refusal")
    said = refused(monkeypatch, capsys, *asked)
    assert "has no chat template; use -T format=plain" in said


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({"model_name": "gemma-2-2b"}, "trained on 'gemma-2-2b', not on a gpt2 model; use one of"),
        ({"hook_name": "blocks.4.hook_resid_post"}, f"_post', not at {HOOK}; use it there, or say"),
    ],
)
def test_an_sae_of_another_model_or_hook_point_is_forced_and_flagged(
    metadata: dict[str, str],
    line: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
) -> None:
    asked = on(model, write_other(tmp_path / "sae", **metadata), tmp_path / "runs", "--task", "ioi")
    said = refused(monkeypatch, capsys, *asked)
    assert line in said
    assert "--force-sae if you know that it fits" in said
    assert saebench(monkeypatch, *asked, "--force-sae") == 0
    (row,) = read_result(Path(capsys.readouterr().out.strip())).rows
    assert "forced-sae" in row.flag_names


def test_an_sae_that_fits_is_not_flagged_though_force_was_said(
    model: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    sae = write_other(tmp_path / "sae", model_name="gpt2")
    asked = on(model, sae, tmp_path / "runs", "--task", "ioi", "--force-sae")
    assert saebench(monkeypatch, *asked) == 0
    (row,) = read_result(Path(capsys.readouterr().out.strip())).rows
    assert "forced-sae" not in row.flag_names


@pytest.mark.parametrize("at", ["checkpoint", "end"])
def test_a_disk_that_is_full_while_an_sae_is_trained(
    at: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """What was saved before stays, what is half written does not, and the command goes on."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{name} lives in the town ." for name in ("Anna", "Bob") * 40))
    small = ["--width", "32", "--l0", "4", "--tokens", str(20 * BATCH), "--device", "cpu"]
    out = tmp_path / "sae"
    asked = ["sae", "train", "--hook", HOOK, "--text", str(text), "--out", str(out), *small]
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("saebench_recovery.training.recipe.BLOCK", 6 * BATCH)
    with Patch.context() as failing:
        fill_up(failing, at)
        said = refused(failing, capsys, *asked)
    assert f"nothing can be saved in {out}: " in said
    assert "No space left on device" in said
    assert not (out / "cfg.json").exists()
    found = {path.name.partition("-")[0] for path in out.iterdir()}
    assert found == ({"recipe.json"} if at == "checkpoint" else {"recipe.json", "checkpoint"})
    assert saebench(monkeypatch, *asked) == 0
    assert (out / "cfg.json").is_file()


def fill_up(patch: Patch, at: str) -> None:
    """From now on, or when the finished SAE is saved, a file gets only its beginning."""

    def cut(weights: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError(f"Error while serializing: I/O error: {FULL.strerror} (os error 28)")

    def finish(sae: Any, path: Path) -> None:
        path.mkdir()
        (path / "sae_weights.safetensors").write_bytes(b"half")
        raise FULL

    if at == "checkpoint":
        patch.setattr(train, "save_file", cut)
    else:
        patch.setattr("sae_lens.BatchTopKTrainingSAE.save_inference_model", finish)


def test_the_models_own_text_cannot_be_written(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "text.jsonl")
    monkeypatch.setattr("saebench_recovery.training.run.SAMPLED", "../nowhere")
    out = tmp_path / "sae"
    small = ["--width", "32", "--l0", "4", "--tokens", "5120", "--device", "cpu"]
    said = refused(monkeypatch, capsys, "sae", "train", "--hook", HOOK, "--out", str(out), *small)
    assert "nowhere cannot be written: No such file or directory; repeated" in said
    assert not (out / "cfg.json").exists()


def test_a_disk_that_is_full_when_results_are_written(
    model: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    def fail(handle: int) -> None:
        raise FULL

    asked = on(model, write_sae(tmp_path / "sae", HOOK), tmp_path / "runs", "--task", "ioi")
    with Patch.context() as failing:
        failing.setattr(os, "fsync", fail)
        assert "No space left on device" in refused(failing, capsys, *asked)
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert saebench(monkeypatch, *asked) == 0
