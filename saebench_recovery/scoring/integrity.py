"""Whether code that ran in this process left what judges it as it was.

Plugins are code, as trusted as any import (see docs/soundness.md): this catches one that replaces
a function or a table of the package, a function of torch or Python, or one of the task and defense
that judge it, while it searches, and one whose own functions stand there before. What protects a
leaderboard is that its rows are recomputed elsewhere.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cached_property
from types import FunctionType, ModuleType
from typing import cast

import torch

from saebench_recovery.base.catalogue import Kind
from saebench_recovery.base.plugin import Plugin
from saebench_recovery.registry import code_of_others, is_built_in, plugin_class
from saebench_recovery.scoring.source_code import is_planted, modules, otherwise

# What says whose code is watched.
DECIDES = tuple(
    f"saebench_recovery.{name}"
    for name in ("registry", "scoring.integrity", "scoring.source_code", "scoring.setting")
)
CALCULATES: tuple[ModuleType | type, ...] = (
    builtins,
    math,
    torch,
    torch.Tensor,
    torch.nn.functional,
    torch.linalg,
)


def others_at_hand(*plugins: Plugin) -> bool:
    """Whether this process runs code of others: a plugin of theirs, or a file that was imported."""
    return bool(code_of_others()) or not all(map(is_ours, plugins))


def disarmed() -> bool:
    """Whether what decides on watching is no longer what the package's source says."""
    return any(True for _ in otherwise(DECIDES))


def is_ours(plugin: Plugin) -> bool:
    """Whether the package defines the plugin's class, whatever the class says of itself."""
    kind, name = cast("Kind", plugin.kind), plugin.name
    return is_built_in(kind, name) and type(plugin) is plugin_class(kind, name)


def fingerprint(*judges: object) -> dict[str, int]:
    """The identity of all that figures depend on, and of these objects and their classes."""
    found = {name: _identity(value) for name, value in (*_shared(), *_own(judges))}
    for place in CALCULATES:  # an inherited method is replaced by a new name
        found[f"{place.__name__} names"] = hash(frozenset(_names(place)))
    for judge in judges:
        name, own = type(judge).__qualname__, _own_callables(judge)
        found |= {f"{name}.{key} of its own": id(value) for key, value in own.items()}
        made = [key for key in own if not isinstance(_of_class(judge, key), cached_property)]
        found[f"own functions of {name}"] = hash(tuple(made))
    return found


def _own_callables(judge: object) -> dict[str, object]:
    """Functions that stand in an object, and so before those of its class."""
    return {key: value for key, value in vars(judge).items() if callable(value)}


def _of_class(judge: object, key: str) -> object:
    return getattr(type(judge), key, None)


def replaced_since(before: dict[str, int], *judges: object) -> list[str]:
    """What is no longer the same, by name."""
    now = fingerprint(*judges)
    return sorted(name for name, place in before.items() if now.get(name) != place)


def replaced(before: dict[str, int], *judges: object) -> list[str]:
    """The same, and what was never what the package's source says."""
    planted = {name for name, value in _shared() if is_planted(value)}
    return sorted({*replaced_since(before, *judges), *planted, *otherwise()})


def _identity(value: object) -> int:
    """Of a function also what it is made of, which can be replaced in it; of a set its items."""
    if isinstance(value, frozenset):
        return hash(value)
    if not isinstance(value, FunctionType):
        return id(value)
    cells = []
    for cell in value.__closure__ or ():
        try:
            cells.append(id(cell.cell_contents))
        except ValueError:  # it is empty
            cells.append(0)
    made_of = (value.__code__, value.__defaults__, value.__kwdefaults__)
    return hash((id(value), *map(id, made_of), *cells))


def _shared() -> Iterator[tuple[str, object]]:
    """Functions and tables of the package, and functions of torch."""
    for name, module in modules():
        yield f"{name} hides", frozenset(vars(module).keys() & vars(builtins).keys())
        for key, value in list(vars(module).items()):
            if callable(value):
                yield f"{name}.{key}", value
            elif key.isupper():
                yield from _table(f"{name}.{key}", value)
            if isinstance(value, type) and value.__module__ == name:
                yield from _methods(value)
    for place in CALCULATES:
        for key in _names(place):
            yield f"{place.__name__}.{key}", vars(place)[key]


def _names(place: ModuleType | type) -> list[str]:
    """A module imports others when they are first asked for; its functions stay."""
    if isinstance(place, type):
        return list(vars(place))
    return [key for key, value in list(vars(place).items()) if callable(value)]


def _table(name: str, value: object) -> Iterator[tuple[str, object]]:
    """A constant, its entries, and what those are made of."""
    yield name, value
    if not isinstance(value, tuple | list | dict):
        return
    for i, entry in enumerate(value.values() if isinstance(value, dict) else value):
        yield f"{name}[{i}]", entry
        if is_dataclass(entry):
            for key, part in vars(entry).items():
                yield f"{name}[{i}].{key}", part


def _own(judges: tuple[object, ...]) -> Iterator[tuple[str, object]]:
    for judge in judges:
        for cls in type(judge).__mro__:
            yield from _methods(cls)


def _methods(cls: type) -> Iterator[tuple[str, object]]:
    """Those that a class defines, and their names: a new one goes before an inherited one."""
    own = {
        key: value
        for key, value in list(vars(cls).items())
        if isinstance(value, FunctionType | property | staticmethod | classmethod)
    }
    yield f"{cls.__module__}.{cls.__qualname__} methods", frozenset(own)
    for key, value in own.items():
        yield f"{cls.__module__}.{cls.__qualname__}.{key}", value
