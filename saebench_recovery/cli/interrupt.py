"""A verb that is stopped says in one line what it leaves, and exits as the shell expects."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a verb as Ctrl-C does."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Exit code 130 after SIGINT and 143 after SIGTERM, with the interrupt's own line."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated("nothing is kept")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        code = 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
        print("stopped:", str(interrupt) or "nothing is kept", file=sys.stderr)
        raise typer.Exit(code) from None
    finally:
        signal.signal(signal.SIGTERM, before)
