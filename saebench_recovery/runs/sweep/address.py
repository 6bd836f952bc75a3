"""Results at an address that fsspec reaches, such as `s3://bucket/runs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import reason
from saebench_recovery.results.folder import LOCK
from saebench_recovery.results.store import RESULT
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.sweep.destination import ATTEMPTS, new_name


@dataclass(frozen=True)
class Address:
    """A folder of a file system that has neither locks nor, it may be, a way to rename.

    `result.json` makes a cell complete. It is moved last.
    """

    name: str
    sweep: str = field(default_factory=new_name)

    def states(self, plans: Sequence[Plan]) -> list[str]:
        with self._in_words():
            files, root = self._files
            files.invalidate_cache()
            found = files.glob(f"{root}/*/{RESULT}")
        done = {PurePosixPath(file).parent.name for file in found}
        return ["done" if plan.identity in done else "to do" for plan in plans]

    def open(self) -> None:
        with self._in_words():
            files, root = self._files
            files.makedirs(f"{root}/{ATTEMPTS}/{self.sweep}", exist_ok=True)
            files.pipe_file(f"{root}/{ATTEMPTS}/{self.sweep}/begun", b"")

    def attempt(self, identity: str) -> str:
        return f"{self.name.rstrip('/')}/{ATTEMPTS}/{self.sweep}/{identity}.{new_name()}"

    def publish(self, attempt: str, identity: str, *, anew: bool) -> None:
        with self._in_words():
            files, root = self._files
            own = f"{root}/{ATTEMPTS}/{self.sweep}"
            source, goal = f"{own}/{PurePosixPath(attempt).name}/{identity}", f"{root}/{identity}"
            files.invalidate_cache()
            if files.exists(f"{goal}/{RESULT}") and not anew:
                return
            if files.exists(goal):  # the old result, or what a sweep left that was killed just here
                files.rm(goal, recursive=True)
            for file in sorted(files.find(source), key=lambda name: name.endswith(f"/{RESULT}")):
                place = f"{goal}{file[len(source) :]}"
                files.makedirs(place.rpartition("/")[0], exist_ok=True)
                files.mv(file, place)

    def close(self) -> None:
        with suppress(Exception):  # of a driver that has lost its connection; all is published
            files, root = self._files
            files.rm(f"{root}/{ATTEMPTS}/{self.sweep}", recursive=True)

    @cached_property
    def _files(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it."""
        files, root = url_to_fs(self.name)
        return files, root.rstrip("/")

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """One line for whatever a file system's driver raises, or that there is no such driver."""
        try:
            yield
        except Exception as error:
            raise UserError(f"cannot use {self.name!r}: {reason(error)}") from error


def send(folder: Path, attempt: str) -> None:
    """Copy a folder, without its lock, into an attempt's; called where a worker is.

    Raises:
        Exception: whatever the file system's driver raises.
    """
    files, root = url_to_fs(attempt)
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != LOCK:
            place = f"{root}/{folder.name}/{file.relative_to(folder).as_posix()}"
            files.makedirs(place.rpartition("/")[0], exist_ok=True)
            files.put_file(str(file), place)
