"""What a defense may read while it is fitted, apart from what its side effects are scored on.

Neutral texts and retained examples are split in two by content. While a defense is fitted it sees
one half, and the other is scored, so that memorising what is scored buys nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from saebench_recovery.base.splits import fraction_of

T = TypeVar("T")
_fitting: ContextVar[bool] = ContextVar("fitting", default=False)


@contextmanager
def fitting() -> Iterator[None]:
    """While open, only what `fit` may read is seen."""
    token = _fitting.set(True)
    try:
        yield
    finally:
        _fitting.reset(token)


def visible(items: Iterable[T], content: Callable[[T], str]) -> list[T]:
    """Those of the half that is seen now."""
    for_fit = _fitting.get()
    return [item for item in items if (fraction_of(content(item)) < 0.5) == for_fit]
