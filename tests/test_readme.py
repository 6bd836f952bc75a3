"""The examples of the README and of docs/usage.md work for a user who copies them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from saebench_recovery.results.store import read_result

README = Path(__file__).parents[1] / "README.md"
USAGE = README.parent / "docs" / "usage.md"
PROGRESS = r"(starting|loading|task \d+ of \d+, )"


def block(containing: str, page: Path = README) -> str:
    """The one code block of a page with these words in it."""
    blocks = re.findall(r"```(?:python|sh)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return str(found)


def in_new_process(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # No library has anything to say of a normal run; we may, on a slow machine.
    said = [line for line in done.stderr.splitlines() if not re.match(PROGRESS, line)]
    assert said == []
    return done.stdout


def test_own_defense(tmp_path: Path) -> None:
    (tmp_path / "my_defense.py").write_text(block('register_defense("my-clamp")'), "utf-8")
    program, *arguments = shlex.split(block("--plugin my_defense.py"))
    assert program == "saebench"
    printed = in_new_process(
        tmp_path, "-m", "saebench_recovery", *arguments, "--task", "ioi", "--limit", "32", "--json"
    )
    result = read_result(tmp_path / printed.strip())
    assert result.status == "complete"
    assert {row.defense for row in result.rows} == {"my-clamp"}
    assert all(row.recovery.n > 0 for row in result.rows)


def test_python_example(tmp_path: Path) -> None:
    example = block("from saebench_recovery import run", USAGE)
    assert example.count("\n") <= 10
    printed = in_new_process(tmp_path, "-c", example)
    assert "valid flips" in printed
    assert list(tmp_path.glob("runs/*/result.json"))


def test_what_the_readme_says_before_its_details_fits_two_screens() -> None:
    before, heading, _ = README.read_text("utf-8").partition("## Your own defense")
    assert heading
    assert before.count("\n") <= 80
    for words in ("pip install .", "saebench run --defense clamp", "valid flips", "Where next:"):
        assert words in before
