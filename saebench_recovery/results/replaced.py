"""Several files of a folder replaced together: all of them or none, whatever kills the process."""

from __future__ import annotations

import os
from pathlib import Path

from saebench_recovery.results.store import sync_names

REPLACING = "replacing"


def replace_files(folder: Path, made: Path) -> None:
    """Put the files of `made`, on the same disk, in place of those of the same names.

    Raises:
        OSError: the folder cannot be written.
    """
    os.rename(made, folder / REPLACING)  # from here on it is `finish_replacing` that goes on
    sync_names(folder)
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Do what a killed process has left of `replace_files`, if it has left anything.

    Raises:
        OSError: the folder cannot be written.
    """
    made = folder / REPLACING
    if not made.is_dir():
        return
    for file in sorted(path for path in made.rglob("*") if path.is_file()):
        os.replace(file, folder / file.relative_to(made))
    for inner in {folder, *(folder / path.relative_to(made) for path in made.rglob("*"))}:
        sync_names(inner)
    for left in sorted(made.rglob("*"), reverse=True):
        left.rmdir()
    made.rmdir()
