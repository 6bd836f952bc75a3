"""`saebench sae` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saebench_recovery.base.errors import UserError
from saebench_recovery.cli import app
from saebench_recovery.cli.interrupt import Terminated
from tests.cli.test_cli import saebench

HOOK = "blocks.2.hook_resid_post"
TEXT = "\n\n".join(f"{name} lives in the town and sells apples ." for name in ("Anna", "Bob") * 20)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def test_an_sae_is_trained_and_measured(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "mine")
    small = ["--width", "32", "--l0", "4", "--tokens", "5120", "--device", "cpu"]
    train = ["sae", "train", "--hook", HOOK, "--text", source, "--out", out, *small]
    assert saebench(monkeypatch, *train) == 0
    said = capsys.readouterr().out
    assert "explained variance" in said
    assert said.splitlines()[-1] == out
    measure = ["sae", "eval", "--sae", out, "--text", source, "--json"]
    assert saebench(monkeypatch, *measure) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["hook"], found["width"]) == (HOOK, 32)
    assert found["reconstruction"]["tokens"] >= found["cross_entropy"]["tokens"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hook", "blocks.x"], "unknown hook point 'blocks.x'; allowed: blocks.<layer>."),
        (["--hook", "blocks.9.hook_resid_post"], "its blocks are 0 to 3"),
        (["--hook", HOOK, "--width", "no"], "width is 'no'"),
        (["--hook", HOOK, "--architecture", "relu"], "architecture is 'relu'"),
        (["--hook", HOOK, "--l0", "9", "--width", "8"], "l0 is 9 of 8 latents"),
        (["--hook", HOOK, "--width", "8192", "--tokens", "5120"], "5120 tokens are too few"),
        (["--hook", HOOK, "--tokens", "10"], "allowed: a whole number at least 5120"),
        (["--hook", HOOK, "--text", "gone.txt"], "cannot read 'gone.txt'"),
        (["--hook", HOOK], "is too short to train on"),
        (
            ["--hook", HOOK, "--width", "10000000", "--tokens", "10000000"],
            "allowed: a whole number from 1 to 4194304",
        ),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--out", str(tmp_path / "mine"), "--device", "cpu"]
    text = [] if "--text" in arguments else ["--text", source]
    assert saebench(monkeypatch, "sae", "train", *where, *text, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert not (tmp_path / "mine" / "cfg.json").exists()


def test_help_names_both() -> None:
    said = CliRunner().invoke(app, ["sae", "--help"]).output
    assert "train" in said
    assert "eval" in said


def test_a_target_without_sae_or_of_unknown_name_is_not_measured() -> None:
    with pytest.raises(UserError, match="organism"):
        app(["sae", "eval", "--text", "a.txt", "--target", "organsm"], standalone_mode=False)


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_an_interrupted_training_says_how_it_goes_on(
    stop: type[BaseException],
    code: int,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise stop

    monkeypatch.setattr("saebench_recovery.training.run.train_on_target", interrupted)
    words = ["--hook", HOOK, "--text", source, "--out", str(tmp_path / "mine")]
    assert saebench(monkeypatch, "sae", "train", *words) == code
    line = f"stopped: the same command goes on from what {str(tmp_path / 'mine')!r} holds\n"
    assert capsys.readouterr() == ("", line)
