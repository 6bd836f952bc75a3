"""The folder of a run: one writer at a time, and an old result until the new one is complete.

`--force` computes into a folder beside (`.<identity>.new`) and swaps it in at the end. Whoever
holds the lock is the only writer, so whatever else stands there is left over from a dead process.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_file, read_bytes
from saebench_recovery.results.chunks import no_texts
from saebench_recovery.results.consistency import read_consistent
from saebench_recovery.results.store import (
    CHUNKS,
    EVIDENCE,
    RESULT,
    TEXTS,
    sync_names,
    unwritable,
)
from saebench_recovery.schema import RunResult

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, WRITER = ".lock", ".writer.json"
LARGEST_WRITER = 4096  # bytes


def _lock(folder: Path) -> BaseFileLock:
    """The lock of a folder, which is taken at once or not at all (`TimeoutError`)."""
    from filelock import FileLock  # a tenth of the time that reading a complete run takes

    return FileLock(folder / LOCK, timeout=0)


class Writer(BaseModel):
    """Who holds the lock of a run."""

    pid: int
    host: str
    since: datetime


class RunFolder:
    """`<out>/<identity>/`, and what stands beside it while an old result waits for a new one."""

    def __init__(self, out: Path, identity: str) -> None:
        self.path = out / identity
        self._new, self._old = (out / f".{identity}.{name}" for name in ("new", "old"))

    def load(self, *, with_texts: bool = False) -> RunResult | None:
        """The result, if the run is complete.

        Raises:
            UserError: it cannot be read, does not fit together, or has no texts although they are
                wanted.
        """
        try:
            self._tidy()
        except OSError as error:  # a name that is too long, a link that leads in a circle
            raise unwritable(self.path, error) from None
        if not is_file(self.path / RESULT):
            return None
        result, _ = read_consistent(self.path)
        if with_texts and not (self.path / TEXTS).exists():
            raise no_texts(self.path)
        return result

    @contextmanager
    def writing(self, *, anew: bool) -> Iterator[Path]:
        """The folder to write to, held against other writers; `anew`: an empty one.

        A folder in which nothing was kept is removed. What was written anew takes the place of
        the old once this ends without an error, and is removed otherwise.

        Raises:
            UserError: another process writes there, or the disk does not let us.
        """
        place = self._new if anew else self.path
        with self._locked():
            self._clear()
            try:
                self._make(place)
                yield place
                if anew:
                    self._swap()
            finally:
                shutil.rmtree(self._new, ignore_errors=True)
                if not self._worth_keeping():
                    shutil.rmtree(self.path, ignore_errors=True)

    def publish(self, made: Path, *, anew: bool) -> None:
        """Move a complete run here that was made in another folder of the same disk.

        A result that stands here already stays, unless `anew`; what an interrupted run left does
        not. No renaming replaces anything.

        Raises:
            UserError: another process writes here, or the disk does not let us.
        """
        with self._locked():
            self._clear()
            if is_file(self.path / RESULT) and not anew:
                return
            try:
                os.rename(made, self._new)
            except OSError as error:
                raise unwritable(self._new, error) from None
            self._swap()

    def _make(self, place: Path) -> None:
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(place, error) from None

    def _worth_keeping(self) -> bool:
        log = self.path / CHUNKS
        return (self.path / RESULT).exists() or (log.exists() and log.stat().st_size > 0)

    def _swap(self) -> None:
        """A kill between the two leaves the old result where `_tidy` finds it."""
        try:
            os.replace(self.path, self._old)
            os.replace(self._new, self.path)
            sync_names(self.path.parent)
        except OSError as error:
            raise unwritable(self.path.parent, error) from None
        shutil.rmtree(self._old, ignore_errors=True)

    def _tidy(self) -> None:
        """Remove what dead processes left, as far as the disk lets us and nobody writes."""
        if self._old.exists() and not self.path.exists():
            # Unless a live process is between the two renamings of `_swap`.
            with suppress(OSError), _lock(self._old):
                os.replace(self._old, self.path)
        if any(self._leftovers()) or (self.path / WRITER).exists():
            with suppress(UserError, OSError), self._locked():
                self._clear()

    def _leftovers(self) -> Iterator[Path]:
        yield from (folder for folder in (self._new, self._old) if folder.is_dir())
        for folder in (self.path, self.path / EVIDENCE):
            # Temporary files; a live writer has some too, and the lock.
            yield from (f for f in folder.glob(".*") if f.name not in (LOCK, WRITER))

    def _clear(self) -> None:
        for left_over in self._leftovers():
            if left_over.is_dir():
                shutil.rmtree(left_over, ignore_errors=True)
            else:
                left_over.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = _lock(self.path)
            lock.acquire()
        except TimeoutError:
            raise UserError(f"{str(self.path)!r} is being written by {self._holder()}") from None
        except OSError as error:
            raise unwritable(self.path, error) from None
        except NotImplementedError:
            raise UserError(
                f"the disk of {str(self.path)!r} has no file locks; try another --out"
            ) from None
        try:
            me = Writer(pid=os.getpid(), host=socket.gethostname(), since=datetime.now(UTC))
            (self.path / WRITER).write_text(me.model_dump_json())
            yield
        finally:
            with suppress(OSError):
                (self.path / WRITER).unlink(missing_ok=True)
            lock.release()

    def _holder(self) -> str:
        try:
            holder = Writer.model_validate_json(read_bytes(self.path / WRITER, LARGEST_WRITER))
        except (UserError, ValidationError):
            return "another process"
        since = f"{holder.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"process {holder.pid} on {holder.host} since {since}; wait for it, or stop it"
