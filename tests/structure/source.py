"""Our code as syntax trees: which modules there are, and which import which.

Every import counts alike: at run time, under `TYPE_CHECKING` and inside a function, relative ones
and `import_module` with a literal name too. Classes that the catalogue names in strings do not
count: they are looked up by name, as a user's own are.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = "saebench_recovery"


@dataclass(frozen=True)
class Module:
    name: str  # as it is imported
    path: Path  # relative to the repository's root
    tree: ast.Module
    lines: int

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def room(self) -> str:
        """The part of the package that it belongs to; empty for the package's own root."""
        return self.name.partition(".")[2].partition(".")[0]


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    place: str  # file:line

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def folders() -> dict[str, Path]:
    """Package name -> the folder that setuptools takes it from, for the root and the mapped."""
    mapped: dict[str, str] = pyproject()["tool"]["setuptools"]["package-dir"]
    return {name: Path(folder) for name, folder in mapped.items()}


@cache
def modules() -> dict[str, Module]:
    """All modules of the package by the name under which they are imported."""
    found: dict[str, Module] = {}
    for package, folder in folders().items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = read(path, name)
    return found


@cache
def modules_of_tests() -> tuple[Module, ...]:
    paths = sorted((ROOT / "tests").rglob("*.py"))
    return tuple(read(p, ".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in paths)


def read(path: Path, name: str) -> Module:
    text = path.read_text("utf-8")
    return Module(name, path.relative_to(ROOT), ast.parse(text), len(text.splitlines()))


def imports_of(module: Module, known: dict[str, Module]) -> Iterator[Import]:
    """What a module imports of `known` ones.

    `import a.b.c` runs `a` and `a.b` first, so those count too where the importer is outside of
    them. The root of the package is left to a test of its own: everything imports it.
    """
    for node in ast.walk(module.tree):
        for name in _named(node, module):
            target = name if name in known else name.rpartition(".")[0]
            if target not in known:
                continue
            place = f"{module.path}:{getattr(node, 'lineno', 0)}"
            parents = target.split(".")
            packages = (".".join(parents[:n]) for n in range(2, len(parents)))
            outer = [p for p in packages if not f"{module.name}.".startswith(f"{p}.")]
            for imported in (*outer, target):
                if imported != module.name:
                    yield Import(module.name, imported, place)


@cache
def imports() -> tuple[Import, ...]:
    return tuple(i for module in modules().values() for i in imports_of(module, modules()))


def _named(node: ast.AST, module: Module) -> list[str]:
    """Absolute names that a statement may import; `from a import b` may mean the module a.b."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            base = node.module or ""
            if node.level:
                up = module.name.split(".")[: None if module.is_package else -1]
                up = up[: len(up) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            return [f"{base}.{alias.name}" for alias in node.names]
        case ast.Call(
            func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
    return []


def layers() -> list[list[str]]:
    """The rooms from the top down, as the import-linter contract in pyproject.toml orders them.

    Rooms of one layer do not import each other.
    """
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    (contract,) = [c for c in contracts if c["type"] == "layers"]
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]
