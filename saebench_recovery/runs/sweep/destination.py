"""Where cells stand once they are complete, if workers on several machines carry them out.

A worker writes to a folder of its own, `.attempts/<sweep>/<attempt>/`. Only the sweep that ordered
an attempt publishes it, and only when it has heard that it is complete. What a worker writes that
was given up for lost, or whose sweep was killed, never appears among the results.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_file
from saebench_recovery.results.folder import RunFolder
from saebench_recovery.results.store import RESULT, check_writable
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.sweep.cells import state

ATTEMPTS = ".attempts"


def new_name() -> str:
    """A name that no other sweep, and no other attempt, has."""
    return uuid4().hex[:12]


class Destination(Protocol):
    """Complete cells, each by its identity; `name` is the folder's or address's."""

    @property
    def name(self) -> str: ...

    def states(self, plans: Sequence[Plan]) -> list[str]:
        """How far each cell has come: done, begun or to do."""
        ...

    def open(self) -> None:
        """Make sure that cells can be published, before any is carried out.

        Raises:
            UserError: they cannot.
        """
        ...

    def attempt(self, identity: str) -> str:
        """The folder or address of a new attempt at a cell."""
        ...

    def publish(self, attempt: str, identity: str, *, anew: bool) -> None:
        """Show a complete attempt under its identity; an earlier result stays, unless `anew`.

        Raises:
            UserError: the attempt is not seen from here, or the result cannot be written.
        """
        ...

    def close(self) -> None:
        """Remove the attempts of this sweep."""
        ...


@contextmanager
def opened(destination: Destination) -> Iterator[None]:
    """Have a destination ready for attempts.

    Raises:
        UserError: see `Destination.open`.
    """
    destination.open()
    try:
        yield
    finally:
        destination.close()


@dataclass(frozen=True)
class Folder:
    """A folder on a disk that all workers see."""

    out: Path
    sweep: str = field(default_factory=new_name)

    @property
    def name(self) -> str:
        return str(self.out)

    def states(self, plans: Sequence[Plan]) -> list[str]:
        return [state(plan, self.out) for plan in plans]

    def open(self) -> None:
        check_writable(self._own)

    def attempt(self, identity: str) -> str:
        return str(self._own / f"{identity}.{new_name()}")

    def publish(self, attempt: str, identity: str, *, anew: bool) -> None:
        made = Path(attempt) / identity
        if not is_file(made / RESULT):
            raise UserError(
                f"a worker wrote to {attempt!r}, and nothing is there: --out must be a folder that "
                "all machines of the cluster share, or an address such as s3://bucket/runs"
            )
        RunFolder(self.out, identity).publish(made, anew=anew)
        shutil.rmtree(attempt, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self._own, ignore_errors=True)
        with suppress(OSError):  # another sweep has attempts there
            self._own.parent.rmdir()

    @property
    def _own(self) -> Path:
        return self.out.absolute() / ATTEMPTS / self.sweep
