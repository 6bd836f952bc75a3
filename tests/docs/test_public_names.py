"""Every public name is documented and stands in a reference that is current."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import saebench_recovery
from saebench_recovery import interfaces

VERBS = ("attribute", "check", "compare", "load_runs", "run", "verify")
ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def own_members(cls: type[Any]) -> dict[str, Any]:
    """Public methods and properties that a class defines itself."""
    kinds = (property, classmethod, staticmethod)
    return {
        name: member
        for name, member in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds))
    }


@pytest.mark.parametrize("name", saebench_recovery.__all__)
def test_a_name_of_the_root_is_documented(name: str) -> None:
    documented = inspect.getdoc(getattr(saebench_recovery, name)) or ""
    assert documented
    if name in VERBS:
        assert all(part in documented for part in ("Args:", "Returns:", "Raises:", "Example:"))


@pytest.mark.parametrize("name", interfaces.__all__)
def test_a_name_of_the_interfaces_is_documented(name: str) -> None:
    """With its public members, as far as they are not said by a base class."""
    found = getattr(interfaces, name)
    if not callable(found) or not hasattr(found, "__module__"):
        return  # an alias of a type
    if found.__module__.startswith("saebench_recovery"):
        assert inspect.getdoc(found), name
    if inspect.isclass(found):
        silent = [m for m in own_members(found) if not inspect.getdoc(getattr(found, m))]
        assert not silent, f"{name}: {silent}"


def test_help_shows_the_verbs() -> None:
    shown = pydoc.plain(pydoc.render_doc(saebench_recovery))
    functions = shown.partition("FUNCTIONS")[2]
    for name in VERBS:
        assert re.search(rf"^    {name}\(", functions, re.MULTILINE), name
    assert "threat_model" in functions


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    program = (
        "import sys, saebench_recovery; dir(saebench_recovery); heavy = {'torch', 'pandas'}; "
        "assert not heavy & sys.modules.keys(); from saebench_recovery import load_runs, compare; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_reference_of_the_command_line_is_current() -> None:
    command = [sys.executable, "-m", "docs.command_line", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_verb_and_public_name_has_its_place_in_the_reference() -> None:
    python = (REFERENCE / "python.md").read_text("utf-8")
    plugins = (REFERENCE / "interfaces.md").read_text("utf-8")
    assert all(re.search(rf"^::: .*\.{name}$", python, re.M) for name in saebench_recovery.__all__)
    for name in interfaces.__all__:
        found = getattr(interfaces, name)
        if inspect.isfunction(found):
            assert f"::: {found.__module__}.{name}\n" in plugins


@pytest.mark.parametrize(
    ("page", "link", "wanted"),
    [
        ("index.md", "[a](docs/plugins.md)", "[a](plugins.md)"),
        ("leaderboards.md", "[a](../docs/results.md#x)", "[a](results.md#x)"),
        ("targets.md", "[a](../leaderboards/README.md)", "[a](leaderboards.md)"),
        ("targets.md", "[a](../leaderboards/g.yaml)", "a (`leaderboards/g.yaml`)"),
        ("reference/python.md", "[a](../results.md)", "[a](../results.md)"),
        ("plugins.md", "[a](https://example.org) [b](#c)", "[a](https://example.org) [b](#c)"),
    ],
)
def test_links_lead_to_pages_of_the_site(page: str, link: str, wanted: str) -> None:
    pytest.importorskip("mkdocs", reason="comes with the extra `docs`")
    spec = spec_from_file_location("pages_of_the_site", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    hook = module_from_spec(spec)
    spec.loader.exec_module(hook)
    pages = {"index.md", "leaderboards.md", "plugins.md", "results.md", "targets.md"}
    assert hook.relinked(link, page, pages) == wanted
