"""Identity follows code and data wherever they stand: the harness, the target, a user's modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from saebench_recovery.base.hashing import hash_files
from saebench_recovery.interfaces import Defense
from saebench_recovery.registry import load_plugin_file, plugin_class
from saebench_recovery.runs import provenance
from saebench_recovery.runs.fingerprint import target_fingerprint
from saebench_recovery.runs.run import run
from saebench_recovery.runs.sources import source_hash
from saebench_recovery.targets.loading import load_target
from tests.fake_engine import Engine
from tests.fakes import PRESET

ROOT = Path(__file__).parents[2]
PLUGIN = """
{imports}
from saebench_recovery import register_defense
from saebench_recovery.interfaces import Defense
@register_defense('{name}')
class Scaled(Defense):
    def intervene(self, site, resid_BTD):
        {body}
"""


def write_plugin(
    folder: Path, imports: str = "", body: str = "return resid_BTD", name: str = "scaled"
) -> Path:
    file = folder / "plugin.py"
    file.write_text(PLUGIN.format(imports=imports, body=body, name=name))
    return file


def hash_of(file: Path) -> str:
    """In a process of its own: modules that are imported stay."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
        return process.submit(hash_here, file).result()


def hash_here(file: Path) -> str:
    load_plugin_file(file)
    return source_hash(plugin_class("defense", "scaled"))


def in_new_process(folder: Path, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("imports", "body", "helper"),
    [
        ("import helper", "return resid_BTD", "helper.py"),
        ("", "import helper; return resid_BTD", "helper.py"),
        ("from parts.inner import deep", "return resid_BTD", "parts/inner/deep.py"),
        ("from parts.inner import deep", "return resid_BTD", "parts/__init__.py"),
        ("from importlib import import_module; h = import_module('helper')", "", "helper.py"),
        ("import runpy; h = runpy.run_path(f'{__file__[:-9]}helper.py')", "", "helper.py"),
        ("import helper", "return resid_BTD", "parts/inner/deep.py"),  # which the helper imports
    ],
)
def test_an_edited_helper_module_is_another_run(
    tmp_path: Path, imports: str, body: str, helper: str
) -> None:
    (tmp_path / "parts" / "inner").mkdir(parents=True)
    for folder in ("parts", "parts/inner"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "parts" / "inner" / "deep.py").write_text("FACTOR = 1\n")
    (tmp_path / "helper.py").write_text("from parts.inner import deep as found\n")
    (tmp_path / "stranger.py").touch()
    if "run_path" in imports:
        imports += "\nHELPER = 'helper.py'"
    plugin = write_plugin(tmp_path, imports, body or "return resid_BTD")
    before = hash_of(plugin)
    (tmp_path / "stranger.py").write_text("edited = True\n")
    assert hash_of(plugin) == before
    file = tmp_path / helper
    file.write_text(f"{file.read_text()}edited = True\n")
    assert hash_of(plugin) != before


def test_edited_plugin_or_environment_is_another_run(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    ids = [
        run(
            out=out,
            defense="multiplied",
            plugins=[
                write_plugin(tmp_path, body=f"return resid_BTD * {factor}", name="multiplied")
            ],
        ).identity
        for factor in (1, 2, 1)
    ]
    assert ids[0] == ids[2] != ids[1]
    clamp = run(out=out).identity
    assert (
        run(out=out, plugins=[write_plugin(tmp_path, name="multiplied")]).identity == clamp
    )  # loaded, not used
    versions = "saebench_recovery.runs.fingerprint.package_versions"
    monkeypatch.setattr(versions, lambda: {"torch": "0"})
    assert run(out=out).identity != clamp


def test_source_follows_the_file_not_its_place(tmp_path: Path) -> None:
    hashes = []
    for folder, body in (("a", "return 1"), ("b", "return 1"), ("c", "return 2")):
        (tmp_path / folder).mkdir()
        file = write_plugin(tmp_path / folder, body=body)
        hashes.append(hash_of(file))
    assert hashes[0] == hashes[1] != hashes[2]


def test_bases_count(tmp_path: Path) -> None:
    hashes = []
    for value in (1, 2):
        file = write_plugin(tmp_path, body=f"return {value}")
        file.write_text(file.read_text().replace("scaled", "of-a-base"))
        load_plugin_file(file)
        base: type[Defense] = plugin_class("defense", "of-a-base")  # type: ignore[assignment]
        derived = type("Derived", (base,), {"__module__": __name__})
        hashes.append(source_hash(derived))
    assert hashes[0] != hashes[1]


def test_code_or_data_in_a_new_folder_of_the_package_counts(tmp_path: Path) -> None:
    for name in ("saebench_recovery", "attacks", "defenses", "tasks"):
        left_out = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    code = (
        "from pathlib import Path\n"
        "from saebench_recovery.runs.fingerprint import harness_fingerprint as found\n"
        "def after(name):\n"
        "    file = Path(name); file.parent.mkdir(parents=True, exist_ok=True)\n"
        "    file.write_text('1'); return found()\n"
        "files = ['saebench_recovery/new/deep/code.py', 'saebench_recovery/new/words.json',\n"
        "         'attacks/_mine.py', 'tasks/data/more.json']\n"
        "shown = ['saebench_recovery/cli/new.py', 'saebench_recovery/results/report/new.py',\n"
        "         'saebench_recovery/new/__pycache__/code.pyc']\n"
        "before = found(); print(before in map(after, shown), end=' ')\n"
        "print(len({before, *map(after, shown)}), len({before, *map(after, files)}))"
    )
    assert in_new_process(tmp_path, code).split() == ["True", "1", "5"]


def test_hash_follows_names_and_contents_not_place(tmp_path: Path) -> None:
    def hashed(folder: str, name: str, content: str) -> str:
        root = tmp_path / folder
        root.mkdir()
        (root / name).write_text(content)
        return hash_files(root.iterdir(), root)

    assert hashed("a", "x", "1") == hashed("b", "x", "1")
    assert len({hashed("c", "x", "1"), hashed("d", "y", "1"), hashed("e", "x", "2")}) == 3


def test_target_fingerprint_follows_weights_and_sites(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("1")
    local = PRESET.model_copy(update={"model": str(tmp_path)})
    before = target_fingerprint(local)
    assert before != target_fingerprint(PRESET)
    (tmp_path / "README.md").write_text("about the weights")
    assert target_fingerprint(local) == before
    weights.write_text("2")
    assert target_fingerprint(local) != before
    moved = PRESET.model_copy(update={"saes": {"blocks.0.hook_resid_post": "nowhere/sae"}})
    assert target_fingerprint(moved) != target_fingerprint(PRESET)


def test_a_row_names_the_commit_that_its_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may be checked out meanwhile, which a long sweep does not run."""
    commits = iter(["begun with", "checked out since"])
    monkeypatch.setattr(provenance, "git_commit", lambda file: next(commits))
    provenance._own_commit.cache_clear()
    target = load_target("organism", "cpu")
    try:
        made = {provenance.provenance(target, []).git_commit for _ in range(2)}
    finally:
        provenance._own_commit.cache_clear()
    assert made == {"begun with"}
