"""A script in a clone's root runs whatever is installed: the wheel, the clone, or nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import saebench_recovery
from saebench_recovery import run
from saebench_recovery.defenses.clamp import Clamp
from saebench_recovery.registry import plugin_class
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.spec import RunSpec

assert plugin_class("defense", "clamp") is Clamp
print(callable(run), saebench_recovery.__file__, Plan.of(check_names(RunSpec())).identity)
"""


def call(*command: str | Path, folder: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that is installed here, but this project."""
    folder = tmp_path_factory.mktemp("dependencies")
    places = [Path(place) for place in sys.path if Path(place).name.endswith("-packages")]
    for package in (found for place in places for found in place.iterdir()):
        ours = "saebench_recovery" in package.name
        if not ours and package.suffix != ".pth" and not (folder / package.name).exists():
            (folder / package.name).symlink_to(package)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, dependencies: Path) -> Path:
    """A fresh environment that sees them."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(str(dependencies))
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("saebench_recovery", "attacks", "defenses", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "script.py").write_text(SCRIPT)
    return folder


@pytest.mark.parametrize("install", [["."], ["-e", "."], []], ids=["wheel", "editable", "nothing"])
def test_script_in_the_root_of_a_clone(clone: Path, environment: Path, install: list[str]) -> None:
    python = environment / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python]
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    if install:
        call(*pip, "install", *options, *install, folder=clone)
    try:
        works, file, identity = call(python, "script.py", folder=clone).split()
        assert works == "True"
        assert Path(file).is_relative_to(clone)
        if install == ["."]:  # the wheel itself, away from the clone: the same code and data
            elsewhere = call(python, "-c", SCRIPT, folder=clone.parent).split()
            assert not Path(elsewhere[1]).is_relative_to(clone)
            assert elsewhere[2] == identity
    finally:
        if install:
            call(*pip, "uninstall", "--yes", "--quiet", "saebench-recovery", folder=clone)
