"""Content hashes: a run's identity follows what it was computed with, not where that lay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from saebench_recovery.base.settings import canonical_json


def hash_text(text: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(file: Path) -> str:
    """SHA-256 of a file's content, read piece by piece: weights may be larger than memory."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def hash_files(files: Iterable[Path], root: Path) -> str:
    """SHA-256 over names (relative to `root`) and contents, in a fixed order."""
    contents = {file.relative_to(root).as_posix(): hash_file(file) for file in files}
    return hash_text(canonical_json(contents))
