"""Whether the functions of this package are those that its files define.

A plugin that replaces one before a run begins leaves nothing to compare with but the source: what
Python compiles from it is what must run, under the names that it has there and in every module
that imports it.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Container, Iterator, Mapping
from functools import cache
from inspect import CO_OPTIMIZED
from types import CodeType, FunctionType, ModuleType
from typing import Any

from saebench_recovery.base.plugin import PLUGIN_FILES

PACKAGE = __name__.partition(".")[0]
# How what decorates a function keeps it.
INSIDE = ("__wrapped__", "__func__", "func", "fget", "wrapped")

Imported = tuple[str, str, str]
"""A name in a module, and the module and name that it comes from."""


def modules() -> Iterator[tuple[str, ModuleType]]:
    """Those of this package that are imported."""
    for name, module in list(sys.modules.items()):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            yield name, module


def otherwise(among: Container[str] | None = None) -> Iterator[str]:
    """Names of this package under which something else stands than its source puts there.

    Of some of its modules, or of all.
    """
    for name, module in modules():
        if among is not None and name not in among:
            continue
        codes, imports = _source(name)
        for qualified, expected in codes.items():
            if (value := _found(module, qualified)) is not None and _code(value) not in expected:
                yield f"{name}.{qualified}"
        for own, place, there in imports:
            origin = sys.modules.get(place)
            if origin is None or own not in vars(module) or there not in vars(origin):
                continue
            if vars(module)[own] is not vars(origin)[there]:
                yield f"{name}.{own}"


def is_planted(value: Any) -> bool:
    """Whether it is code of a plugin file, or wraps something that is."""
    return any(
        str(getattr(layer, "__module__", "")).startswith(PLUGIN_FILES)
        or _runs_in(layer).startswith(PLUGIN_FILES)
        for layer in (type(value), *_layers(value))
    )


def _runs_in(value: Any) -> str:
    """The module of a function's globals."""
    return str(value.__globals__.get("__name__")) if isinstance(value, FunctionType) else ""


def _layers(value: Any) -> Iterator[Any]:
    """A value, and what it wraps."""
    for _ in range(8):
        yield value
        inner = [kept for name in INSIDE if (kept := _kept(value, name)) is not None]
        if not inner:
            return
        value = inner[0]


def _kept(value: Any, name: str) -> Any:
    if isinstance(value, type):  # a class may have methods of such names
        return None
    return getattr(value, name, None)


def _code(value: Any) -> CodeType | None:
    """Of the innermost function."""
    *_, last = _layers(value)
    return last.__code__ if isinstance(last, FunctionType) else None


def _found(module: ModuleType, qualified: str) -> Any:
    """What stands under a name; None where the source defines it and does not keep it."""
    value: Any = module
    for part in qualified.split("."):
        value = vars(value).get(part) if hasattr(value, "__dict__") else None
    return value


@cache
def _source(name: str) -> tuple[Mapping[str, frozenset[CodeType]], tuple[Imported, ...]]:
    """The functions that a module defines, and what it imports by name from a module."""
    loader: Any = getattr(sys.modules[name].__spec__, "loader", None)
    code = loader.get_code(name) if hasattr(loader, "get_code") else None
    if code is None:
        return {}, ()
    found: dict[str, frozenset[CodeType]] = {}
    for one in _functions(code):
        found[one.co_qualname] = found.get(one.co_qualname, frozenset()) | {one}
    return found, tuple(_imports(code))


def _functions(code: CodeType) -> Iterator[CodeType]:
    """Of a module or a class, and of the classes in it."""
    for inner in code.co_consts:
        if not isinstance(inner, CodeType) or "<" in inner.co_qualname:
            continue
        if inner.co_flags & CO_OPTIMIZED:
            yield inner
        else:
            yield from _functions(inner)


def _imports(code: CodeType) -> Iterator[Imported]:
    place, there = "", ""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            place = str(step.argval)
        elif step.opname == "IMPORT_FROM":
            there = str(step.argval)
        elif step.opname == "STORE_NAME" and there:
            yield str(step.argval), place, there
            there = ""
