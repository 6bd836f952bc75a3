"""Imports run downward and never in a circle, wherever in a file they stand."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from tests.structure.source import PACKAGE, Import, Module, imports, imports_of, layers, modules


def cycles(edges: Iterable[Import]) -> list[list[Import]]:
    """The shortest circle through each module that lies on one, each circle once."""
    outgoing: dict[str, dict[str, Import]] = {}
    for edge in edges:
        outgoing.setdefault(edge.importer, {}).setdefault(edge.imported, edge)
    found: dict[frozenset[str], list[Import]] = {}
    for start in outgoing:
        paths: list[list[Import]] = [[edge] for edge in outgoing[start].values()]
        seen: set[str] = set()
        while paths:
            path = paths.pop(0)
            last = path[-1].imported
            if last == start:
                found.setdefault(frozenset(edge.imported for edge in path), path)
                break
            if last not in seen:
                seen.add(last)
                paths += [[*path, edge] for edge in outgoing.get(last, {}).values()]
    return list(found.values())


def upward(edges: Iterable[Import], order: list[list[str]]) -> Iterator[Import]:
    """Imports from one room into another that is not below it."""
    level = {room: depth for depth, layer in enumerate(order) for room in layer}
    known = modules()
    for edge in edges:
        above, below = known[edge.importer].room, known[edge.imported].room
        if above != below and level[above] >= level[below]:
            yield edge


def inside() -> list[Import]:
    """All imports but those of the package's root, which has a test of its own."""
    return [edge for edge in imports() if PACKAGE not in (edge.importer, edge.imported)]


def test_no_module_imports_itself_in_a_circle() -> None:
    circles = ["\n".join(["a circle:", *map(str, circle)]) for circle in cycles(inside())]
    assert not circles, "\n\n".join(circles)


def test_imports_run_downward() -> None:
    wrong = [f"{edge}, which is not below it" for edge in upward(inside(), layers())]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_its_layer() -> None:
    ordered = [room for layer in layers() for room in layer]
    assert len(ordered) == len(set(ordered))
    assert set(ordered) == {m.room for m in modules().values()} - {""}


def test_the_root_imports_nothing_until_it_is_asked() -> None:
    """Its lazy `__getattr__` may point down; so no module of ours may ask the root for a name.

    Otherwise every module would stand above the run, for every import runs the root first.
    """
    root = modules()[PACKAGE]
    lazy = {edge.place for node in _lazy(root) for edge in imports_of(_only(node), modules())}
    eager = [str(e) for e in imports() if e.importer == PACKAGE and e.place not in lazy]
    assert lazy
    assert not eager, "\n".join(eager)
    asked = [str(e) for e in imports() if e.imported == PACKAGE and not _is_version(e)]
    assert not asked, "\n".join(["only `__version__` may be imported from the root:", *asked])


def _lazy(root: Module) -> Iterator[ast.stmt]:
    """The root's `__getattr__`, and its imports for type checkers, which repeat it."""
    for node in root.tree.body:
        match node:
            case ast.FunctionDef(name="__getattr__") | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield node


def _only(node: ast.stmt) -> Module:
    root = modules()[PACKAGE]
    return Module(root.name, root.path, ast.Module([node], []), root.lines)


def _is_version(edge: Import) -> bool:
    line = int(edge.place.rpartition(":")[2])
    return any(
        isinstance(node, ast.ImportFrom)
        and node.lineno == line
        and [alias.name for alias in node.names] == ["__version__"]
        for node in ast.walk(modules()[edge.importer].tree)
    )


# --- the checks themselves --------------------------------------------------------------------


def example(name: str, text: str) -> Module:
    path = modules()[PACKAGE].path.parent / f"{name}.py"
    return Module(name, path, ast.parse(text), 0)


def edges(sources: dict[str, str]) -> list[Import]:
    known = {name: example(name, text) for name, text in sources.items()}
    return [edge for module in known.values() for edge in imports_of(module, known)]


def test_a_circle_is_seen_wherever_its_imports_stand() -> None:
    sources = {
        "top.a": "from top.b import thing",
        "top.b": "if TYPE_CHECKING:\n    from . import c",
        "top.c": "def f():\n    import importlib\n    importlib.import_module('top.a')",
        "top.d": "import top.a",
    }
    (circle,) = cycles(edges(sources))
    assert {edge.importer for edge in circle} == {"top.a", "top.b", "top.c"}
    assert not cycles(edges({**sources, "top.c": ""}))


def test_an_upward_import_is_seen() -> None:
    base, run = f"{PACKAGE}.base.errors", f"{PACKAGE}.runs.run"
    down, up = Import(run, base, "run.py:1"), Import(base, run, "errors.py:1")
    assert list(upward([down, up], layers())) == [up]
