"""A disk that fails, or a process that dies, at one chosen call to the system."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

# What writing a run goes through; `unlink` and `rename` only take away and move.
WATCHED = ("fsync", "replace", "truncate", "mkdir", "unlink", "rename")
NEEDS_ROOM = ("fsync", "mkdir")
TORN = 5  # bytes that a write lacks which did not come through

Fault = Callable[[str, Callable[[], Any], tuple[Any, ...]], Any]


def die_before(name: str, genuine: Callable[[], Any], given: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(name: str, genuine: Callable[[], Any], given: tuple[Any, ...]) -> None:
    genuine()
    os.kill(os.getpid(), signal.SIGKILL)


def die_torn(name: str, genuine: Callable[[], Any], given: tuple[Any, ...]) -> None:
    tear(name, given)
    os.kill(os.getpid(), signal.SIGKILL)


def fill_up(name: str, genuine: Callable[[], Any], given: tuple[Any, ...]) -> None:
    tear(name, given)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tear(name: str, given: tuple[Any, ...]) -> None:
    """Take the last bytes from a file that is about to be synced."""
    if name == "fsync":
        with suppress(OSError):  # a folder
            os.ftruncate(given[0], max(0, os.fstat(given[0]).st_size - TORN))


@contextmanager
def disk(at: int | None = None, fault: Fault = die_before) -> Iterator[list[str]]:
    """The names of all watched calls; that number `at` has the fault.

    A disk that is full stays so: from then on every call that needs room fails too.
    """
    calls: list[str] = []

    def watched(name: str, genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            number = len(calls)
            calls.append(name)
            later = fault is fill_up and at is not None and number > at and name in NEEDS_ROOM
            if number == at or later:
                return fault(name, lambda: genuine(*given, **named), given)
            return genuine(*given, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WATCHED:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield calls


def in_a_process(work: Callable[[], Any]) -> Any:
    """A process that was started and does this."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child
