"""A stored run on one task: its row, and its flips by id, of a suite the worst case of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.consistency import read_consistent
from saebench_recovery.results.store import read_records
from saebench_recovery.schema import Facts, Record, Row, RunResult
from saebench_recovery.scoring.suite import worst_case


@dataclass(frozen=True)
class TaskRun:
    """`records` are those of this task, of a suite those of every member.

    `facts` are None without a `run.json`; `name` is what the user calls the run, if anything.
    """

    run: RunResult
    row: Row
    records: Sequence[Record]
    facts: Facts | None
    name: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings of task, defense and attack, and the hook point."""
        resolved: dict[str, Any] | None = self.run.spec.get("resolved", {}).get(self.row.task)
        if resolved is None:
            raise UserError(f"run {self.run.identity} does not say its settings (spec.resolved)")
        return resolved

    @cached_property
    def flips(self) -> Mapping[str, Record]:
        """One record for each flip, in the order of their ids."""
        members = [member.attack for member in self.row.suite] or [self.row.attack]
        return {record.id: record for record in worst_case(self.records, members)}


def read_run(path: Path, name: str = "") -> tuple[RunResult, dict[str, TaskRun]]:
    """A run, given its folder or its `result.json`, and its parts by task.

    Raises:
        UserError: it cannot be read, or does not fit together.
    """
    result, stored = read_consistent(path)
    if stored is None:
        records, facts = read_records(path if path.is_dir() else path.parent), {}
    else:
        records, facts = [r for _, chunk in stored.chunks for r in chunk], stored.facts
    of_task: dict[str, list[Record]] = {}
    for record in records:
        of_task.setdefault(record.task, []).append(record)
    return result, {
        row.task: TaskRun(result, row, of_task.get(row.task, []), facts.get(row.task), name)
        for row in result.rows
    }


def names(runs: Sequence[TaskRun]) -> list[str]:
    """Each run's own name; else defense against attack, with settings where that is no name."""
    short = [run.name or f"{run.row.defense} against {run.row.attack}" for run in runs]
    count = Counter(short)
    alike = len(count) < len(runs)
    settings = [_settings(run) if alike else {} for run in runs]
    values: dict[tuple[str, str], set[str]] = {}
    for of_run in settings:
        for setting, value in of_run.items():
            values.setdefault(setting, set()).add(value)
    return [
        name
        if run.name or count[name] == 1
        else " ".join(
            [
                name,
                *(f"{s[1]}={value}" for s, value in own.items() if len(values[s]) > 1),
                f"({run.run.identity[:8]})",
            ]
        )
        for name, run, own in zip(short, runs, settings, strict=True)
    ]


def _settings(run: TaskRun) -> dict[tuple[str, str], str]:
    """Every setting of defense and attack, by its kind and name, as text."""
    return {
        (kind, key): canonical_json(value)
        for kind in ("defense", "attack")
        for key, value in run.config[kind].items()
    }
