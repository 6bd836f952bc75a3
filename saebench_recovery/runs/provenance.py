"""What produced a result: versions, commit, hashes, device."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import get_args

from saebench_recovery.base.settings import canonical_json
from saebench_recovery.interfaces import Split, Task
from saebench_recovery.runs.fingerprint import package_versions, target_fingerprint
from saebench_recovery.schema import Provenance
from saebench_recovery.targets.target import Target


def provenance(target: Target, tasks: Iterable[Task]) -> Provenance:
    """The record that stands beside the numbers; `seconds` and `commits` are known at the end."""
    return Provenance(
        packages=package_versions(),
        git_commit=_own_commit(),
        target_hash=target_fingerprint(target.preset),
        data_hash=data_hash(target, tasks),
        device=", ".join(target.devices),
        dtype=str(target.dtype).removeprefix("torch."),
        agreement=target.agreement,
        seconds=0,
    )


def data_hash(target: Target, tasks: Iterable[Task]) -> str:
    """SHA-256 over the token ids of every example of every split."""
    digest = hashlib.sha256()
    for task in tasks:
        for split in get_args(Split):
            for example in task.examples(target, split):
                digest.update(canonical_json([task.name, split, asdict(example)]).encode())
    return digest.hexdigest()


@cache
def _own_commit() -> str | None:
    """That of this process's code: what is checked out while it runs is not what it runs."""
    return git_commit(Path(__file__))


def git_commit(file: Path) -> str | None:
    """The commit of the checkout that a source file belongs to, "-dirty" if it was edited.

    None where the file is not under version control, as in an installed wheel.
    """
    file = file.resolve()
    git = ["git", "-C", str(file.parent)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", file.name], capture_output=True
        )
        if tracked.returncode != 0:
            return None
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
