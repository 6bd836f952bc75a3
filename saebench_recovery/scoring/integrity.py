"""Whether code that ran in this process left what judges it as it was.

Plugins are code, as trusted as any import (see docs/soundness.md): this catches one that replaces
a function of the package, or of the task and defense that judge it, while it searches. What
protects a leaderboard is that its rows are recomputed elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType

PACKAGE = __name__.partition(".")[0]


def fingerprint(*judges: object) -> dict[str, int]:
    """The identity of every function of the package, and of these objects and their classes."""
    return dict(_functions(judges))


def replaced(before: dict[str, int], *judges: object) -> list[str]:
    """Functions that are no longer the same, by name."""
    now = fingerprint(*judges)
    return sorted(name for name, place in before.items() if now.get(name) != place)


def _functions(judges: tuple[object, ...]) -> Iterator[tuple[str, int]]:
    for name, module in list(sys.modules.items()):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            for key, value in list(vars(module).items()):
                if callable(value):
                    yield f"{name}.{key}", id(value)
                if isinstance(value, type) and value.__module__ == name:
                    yield from _methods(value)
    for judge in judges:
        for cls in type(judge).__mro__:
            yield from _methods(cls)
        own = [key for key, value in vars(judge).items() if isinstance(value, FunctionType)]
        yield f"{type(judge).__qualname__} object", hash(tuple(own))


def _methods(cls: type) -> Iterator[tuple[str, int]]:
    for key, value in list(vars(cls).items()):
        if isinstance(value, FunctionType | property | staticmethod | classmethod):
            yield f"{cls.__module__}.{cls.__qualname__}.{key}", id(value)
