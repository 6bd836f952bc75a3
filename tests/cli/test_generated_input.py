"""Generated bad input before every verb: one line and an exit code, no traceback, no hang.

By default a sample of each kind; `pytest --whole tests/cli/test_generated_input.py` tries all.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType

import pytest
from huggingface_hub import constants

from saebench_recovery.cli import main
from saebench_recovery.results.published import publish
from saebench_recovery.runs.run import run
from saebench_recovery.runs.verify import verify as verification
from tests.cli.generated import OF_ENTRIES, OF_RUNS, Case, every
from tests.fake_engine import Engine

SECONDS = 20  # of CPU: other work on the machine is no hang
ACCEPTED = "accepted"
SAMPLED = 8  # cases of each kind, unless all are tried
LONGEST = 2100  # characters of an error
CASES = every()
# Kinds that end before any model is loaded; for the others the engine is a fake.
WITHOUT_ENGINE = ("targets", "training", "lines")


class TooLong(BaseException):
    """A case that goes on for more than `SECONDS`."""


@pytest.fixture
def places(engine: Engine, tmp_path: Path) -> dict[str, Path]:
    """A run of one task, and the same published."""
    result = run(tasks=["alpha"], out=tmp_path / "runs")
    folder = (tmp_path / "runs" / result.identity).rename(tmp_path / "genuine")
    publish(folder, tmp_path / "published")
    return {"run": folder, "board": tmp_path / "published"}


def test_there_are_more_than_a_thousand() -> None:
    assert sum(map(len, CASES.values())) > 1000
    assert {case.words[0] for case in CASES["lines"]} >= {"run", "check", "show", "verify", "sae"}


def test_what_is_not_damaged_is_accepted(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So whatever is refused is refused for its damage."""
    monkeypatch.setattr(verification, "recomputed", lambda *_: (0, 0))
    wanted = [*OF_RUNS, *OF_ENTRIES, ("run", "--json", "--task", "alpha", "-D", "latents=3")]
    for number, words in enumerate(wanted):
        here = tmp_path / f"fine{number}"
        here.mkdir()
        assert tried(Case(words), prepared(Case(words), places, here), here) == ACCEPTED


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind not in WITHOUT_ENGINE])
def test_bad_input_with_an_engine(
    kind: str, whole: bool, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "recomputed", lambda *_: (0, 0))
    check(kind, places, tmp_path, every_one=whole)


@pytest.mark.parametrize("kind", WITHOUT_ENGINE)
def test_bad_input(kind: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check(kind, {}, tmp_path, every_one=whole)


def check(kind: str, places: dict[str, Path], tmp_path: Path, *, every_one: bool) -> None:
    cases = CASES[kind] if every_one else CASES[kind][:SAMPLED]
    wrong = []
    for number, case in enumerate(cases):
        here = tmp_path / f"case{number}"
        here.mkdir()
        problem = tried(case, prepared(case, places, here), here)
        if problem:
            wrong.append(f"{kind} {number}: {case}\n    {problem}")
        shutil.rmtree(here, ignore_errors=True)
    assert not wrong, f"{len(wrong)} of {len(cases)}\n" + "\n".join(wrong)


def prepared(case: Case, places: dict[str, Path], here: Path) -> list[str]:
    """The words of a case, whose files and damaged copies now stand in a folder."""
    for name, content in case.files.items():
        (here / name).write_bytes(content)
    copies = dict(places)
    if case.change is not None:
        (place, _, name), damage = case.change[0].partition("/"), case.change[1]
        copies[place] = Path(shutil.copytree(places[place], here / places[place].name))
        file = changed_file(copies[place], place, name)
        file.write_bytes(damage(file.read_bytes()))
    named = {"here": here, "run": copies.get("run", here), "board": copies.get("board", here)}
    words = []
    for word in case.words:
        for name, path in named.items():
            word = word.replace(f"{{{name}}}", str(path))
        words.append(word)
    return words


def changed_file(place: Path, what: str, name: str) -> Path:
    if what == "run":
        return place / name
    (entry,) = (place / "entries").iterdir()
    (evidence,) = (place / "evidence").iterdir()
    return entry if name == "entry" else evidence / name


def tried(case: Case, words: list[str], here: Path) -> str:
    """What is wrong with how the command line took it; nothing, if nothing is."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["saebench", *words])
        if case.environment is not None:
            with suppress(ValueError):
                patch.setitem(os.environ, *case.environment)
        os.chdir(here)
        try:
            with in_time():
                main()
        except SystemExit as stopped:
            code = stopped.code
        except TooLong:
            return f"takes more than {SECONDS} s"
        except BaseException:
            return " | ".join(traceback.format_exc().splitlines()[-7:])
        finally:
            os.chdir(before)
    said = err.getvalue()
    if code in (0, None):
        return "" if is_fine(case) else ACCEPTED
    if code not in (1, 2):
        return f"exit code {code}: {said[:200]!r}"
    if code == 2 and said and (said.count("\n") != 1 or len(said) > LONGEST):
        return f"{said.count(chr(10))} lines: {said[:300]!r}"
    return ""


def is_fine(case: Case) -> bool:
    """Whether there is nothing in a case that its verb has to see."""
    if case.words[:2] == ("leaderboard", "check") and case.change is None:
        return case.words[2] in ("", "..")  # folders without entries
    if case.change is None:
        return case.files == {"p.py": b""}
    # Tables do not rest on the perturbations; `verify` reads them when it replays.
    tables = ("show", "compare", "leaderboard", "verify")
    return case.change[0].startswith("run/evidence/") and case.words[0] in tables


@contextmanager
def in_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
