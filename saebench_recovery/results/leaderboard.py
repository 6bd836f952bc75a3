"""Leaderboards: what complete runs say about defenses and attacks, one file per target and task.

Only what is comparable is ranked together: one target, threat model, budget, set of limits, seed
and set of evaluation examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.hashing import hash_text
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.standings import DefenseStanding, Entry, grouped, ranked
from saebench_recovery.results.task_run import read_run
from saebench_recovery.schema import SCHEMA_VERSION, Count, Finite, Stored
from saebench_recovery.spec import BudgetUnit, Limits, RunSpec, ThreatModel, command


class Group(Stored):
    """Runs that may be compared."""

    threat_model: ThreatModel
    budget: Finite
    budget_unit: BudgetUnit
    limits: Limits
    seed: int
    examples: Count
    task_config: dict[str, Any]
    target_hash: str
    defenses: tuple[DefenseStanding, ...]
    entries: tuple[Entry, ...]


class Leaderboard(Stored):
    """`leaderboards/<target>-<task>.json`."""

    schema_version: int = SCHEMA_VERSION
    target: str
    task: str
    groups: tuple[Group, ...]


def build(runs: Sequence[Path]) -> list[Leaderboard]:
    """Rank what stands in the folders of complete runs; their order does not matter.

    Raises:
        UserError: a run is partial or cannot be read.
    """
    entries = {e.identity + e.row.task: e for run in runs for e in _entries(run)}
    return [
        Leaderboard(
            target=of_task[0].row.target,
            task=of_task[0].row.task,
            groups=tuple(_group(comparable) for comparable in grouped(of_task, _comparable)),
        )
        for of_task in grouped(entries.values(), lambda e: [e.row.target, e.row.task])
    ]


def _entries(run: Path) -> list[Entry]:
    result, by_task = read_run(run)
    spec = RunSpec.model_validate(
        {k: v for k, v in result.spec.items() if k in RunSpec.model_fields}
    )
    repeat = command(spec, result.spec.get("plugin_files", ()))
    if result.status == "partial":
        raise UserError(f"{str(run)!r} is a partial run; finish it first: {repeat}")
    return [
        Entry(
            identity=result.identity,
            command=repeat,
            config=of_task.config,
            valid_flips=hash_text(canonical_json(list(of_task.flips))),
            provenance=result.provenance,
            row=of_task.row,
        )
        for of_task in by_task.values()
    ]


def _comparable(entry: Entry) -> list[Any]:
    """What must agree before two rows are ranked together."""
    row = entry.row
    return [
        row.threat_model,
        row.budget,
        row.budget_unit,
        row.limits.model_dump(),
        row.seed,
        row.examples.n,
        entry.config["task"],
        entry.provenance.target_hash,
    ]


def _group(entries: Sequence[Entry]) -> Group:
    first = entries[0].row
    return Group(
        threat_model=first.threat_model,
        budget=first.budget,
        budget_unit=first.budget_unit,
        limits=first.limits,
        seed=first.seed,
        examples=first.examples.n,
        task_config=entries[0].config["task"],
        target_hash=entries[0].provenance.target_hash,
        defenses=ranked(entries),
        entries=tuple(entries),
    )
