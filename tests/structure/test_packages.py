"""pyproject.toml lists every package, or a wheel would lack it."""

from __future__ import annotations

from tests.structure.source import PACKAGE, ROOT, modules, pyproject


def test_the_list_of_packages_is_complete() -> None:
    listed = pyproject()["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == {m.name for m in modules().values() if m.is_package}


def test_every_folder_with_modules_is_a_package() -> None:
    bare = {
        str(module.path.parent)
        for module in modules().values()
        if not (ROOT / module.path.parent / "__init__.py").is_file()
    }
    assert not bare, f"no __init__.py in {', '.join(sorted(bare))}"


def test_a_clone_has_every_package_file() -> None:
    """A pattern of .gitignore that is meant for results must not swallow a package."""
    patterns = (ROOT / ".gitignore").read_text("utf-8").split()
    names = {part for module in modules() for part in module.removeprefix(PACKAGE).split(".")}
    swallowed = names & {pattern.strip("/") for pattern in patterns if not pattern.startswith("/")}
    assert not swallowed
