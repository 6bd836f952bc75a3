"""`messages.txt`, which is meant to be read through: what was typed, and what is answered."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from saebench_recovery import registry
from saebench_recovery.base.catalogue import BUILT_IN
from saebench_recovery.spec import RunSpec
from tests.cli.test_cli import saebench
from tests.fakes import SITE, record, row, run_result, write_run

MESSAGES = Path(__file__).with_name("messages.txt")


def scenes() -> Iterator[tuple[list[str], str]]:
    """What is typed together, and the one line that answers it."""
    for block in MESSAGES.read_text("utf-8").split("\n\n"):
        lines = block.splitlines()
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        if typed:
            yield typed, " ".join(line.strip() for line in lines[len(typed) :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all is typed, one after the other, with a stored run."""
    made = tmp_path_factory.mktemp("typed")
    configs = {"site": SITE, "defense": {}, "attack": {}, "task": {}}
    spec = RunSpec(tasks=("alpha",)).model_dump(mode="json")
    spec |= {"resolved": {"alpha": configs}, "environment": {}, "plugin_files": []}
    write_run(made / "runs" / "complete", run_result(row(), spec=spec), [record()])
    return made


@pytest.mark.parametrize(("typed", "answer"), scenes(), ids=lambda words: str(words)[:60])
def test_the_answer(
    typed: list[str],
    answer: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    # What other tests of this process registered is not known to a user.
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in BUILT_IN})
    *writing, last = typed
    for line in writing:
        text, how, file = re.fullmatch(r"echo '(.*)' (>>?) (\S+)", line).groups()  # type: ignore[union-attr]
        before = Path(file).read_text("utf-8") if how == ">>" else ""
        Path(file).write_text(f"{before}{text}\n", "utf-8")
    program, *words = shlex.split(last)
    assert program == "saebench"
    assert saebench(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    said = " ".join(err.split())
    pattern = re.escape(answer).replace(re.escape("..."), ".*")
    assert out == ""
    assert said == answer or re.fullmatch(pattern, said)
    assert [place.name for place in folder.glob("runs/*")] == ["complete"]
