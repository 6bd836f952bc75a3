"""A stored run as a comparison is given it: its place, and what its column is to be called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.task_run import TaskRun, read_run


@dataclass(frozen=True)
class NamedRun:
    """A run; without a name it is called by its defense and attack."""

    path: Path
    name: str = ""

    @classmethod
    def of(cls, given: str | Path | NamedRun) -> NamedRun:
        """The run at a path. A text may also be `NAME=RUN`, unless a path of that name exists."""
        if isinstance(given, NamedRun):
            return given
        name, equals, path = str(given).partition("=")
        named = isinstance(given, str) and equals and not os.path.exists(given)
        return cls(Path(path), name) if named else cls(Path(given))


def read_runs(runs: Sequence[NamedRun], baseline: str | None) -> list[dict[str, TaskRun]]:
    """Each run's parts by task, the baseline's first: the run of that name or identity.

    The beginning of an identity will do, where it is that of one run only.

    Raises:
        UserError: a run cannot be read, two have one name, or none or several are the baseline.
    """
    given = [run.name for run in runs if run.name]
    if len(set(given)) < len(given):
        raise UserError(f"two runs have one name; the names are: {', '.join(given)}")
    read = [read_run(run.path, run.name) for run in runs]
    if baseline is None:
        return [by_task for _, by_task in read]
    fitting = [
        number
        for number, (run, (result, _)) in enumerate(zip(runs, read, strict=True))
        if baseline and (run.name == baseline or result.identity.startswith(baseline))
    ]
    if len(fitting) != 1:
        known = ", ".join(
            f"{run.name}={result.identity}" if run.name else result.identity
            for run, (result, _) in zip(runs, read, strict=True)
        )
        which = "none" if not fitting else "several"
        raise UserError(f"--baseline {baseline!r}: {which} of the runs is that; there are: {known}")
    first = fitting[0]
    return [by_task for _, by_task in (read[first], *read[:first], *read[first + 1 :])]
