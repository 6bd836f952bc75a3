"""Leaderboards: what complete runs say about defenses and attacks, one file per target and task.

Only what is comparable is ranked together: one target, threat model, budget, set of limits, seed
and set of evaluation examples. A defense is as good as the strongest attack found against it, so
its rank goes by the worst case of constrained recovery; attacks are compared on the same defense
and the same valid flips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.hashing import hash_text
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.report.summary import worst_drift
from saebench_recovery.results.store import read_examples, read_result
from saebench_recovery.schema import (
    SCHEMA_VERSION,
    Count,
    Finite,
    Provenance,
    Rate,
    Record,
    Row,
)
from saebench_recovery.spec import BudgetUnit, Limits, RunSpec, ThreatModel, command

UNCONSTRAINED = "unconstrained"  # the attack that every constrained one is held against


class Entry(Record):
    """One row with all that is needed to check it."""

    identity: str
    command: str = Field(description="repeats the run that the row is from")
    config: dict[str, Any] = Field(description="resolved settings of task, defense and attack")
    valid_flips: str = Field(description="SHA-256 of the ids of the examples that were attacked")
    provenance: Provenance
    row: Row


class AttackStanding(Record):
    """An attack on one defense; the strongest comes first."""

    attack: str
    identity: str
    recovery: Rate
    constrained: Rate
    wrong_target: Rate
    random_direction: Rate
    worst_drift: Finite | None = Field(description="largest relative drift, examples and scopes")
    flops: Count
    seconds: Finite
    flags: tuple[str, ...]


class DefenseStanding(Record):
    """A defense under all attacks that were run on it; the most robust comes first."""

    rank: Count | None = Field(description="1 is best, ties share; null without valid flips")
    defense: str
    config: dict[str, Any]
    valid_flips: str
    worst_case: Rate = Field(description="constrained recovery of the strongest attack")
    worst_attack: str
    attacks: tuple[AttackStanding, ...]
    missing_attacks: tuple[str, ...] = Field(
        description="run on another defense of the group but not on this one, which flatters it"
    )
    flagged: bool = Field(description="a row behind this standing carries a flag")
    freedom_hurts: bool = Field(
        description="an unconstrained attack recovered less than a constrained one did, beyond its "
        "interval: the search, not the defense, was the limit"
    )


class Group(Record):
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


class Leaderboard(Record):
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
        Leaderboard(target=found[0].row.target, task=found[0].row.task, groups=_groups(found))
        for found in grouped(entries.values(), lambda e: [e.row.target, e.row.task])
    ]


def _entries(run: Path) -> list[Entry]:
    result = read_result(run)
    said = RunSpec.model_validate(
        {k: v for k, v in result.spec.items() if k in RunSpec.model_fields}
    )
    repeat = command(said, result.spec["plugin_files"])
    if result.status == "partial":
        raise UserError(f"{str(run)!r} is a partial run; finish it first: {repeat}")
    examples = read_examples(run if run.is_dir() else run.parent)
    return [
        Entry(
            identity=result.identity,
            command=repeat,
            config=result.spec["resolved"][row.task],
            valid_flips=hash_text(
                canonical_json(sorted(e.id for e in examples if e.task == row.task))
            ),
            provenance=result.provenance,
            row=row,
        )
        for row in result.rows
    ]


def _groups(entries: Sequence[Entry]) -> tuple[Group, ...]:
    return tuple(_group(found) for found in grouped(entries, _comparable))


def _comparable(entry: Entry) -> list[Any]:
    """What must agree before two rows are ranked together."""
    row = entry.row
    return [
        row.threat_model,
        row.budget,
        row.budget_unit,
        row.constrained.limits.model_dump(),
        row.seed,
        row.examples.n,
        entry.config["task"],
        entry.provenance.target_hash,
    ]


def _group(entries: Sequence[Entry]) -> Group:
    attacks = {_attack(e) for e in entries}
    standings = [
        _defense(found, attacks)
        for found in grouped(
            entries, lambda e: [e.row.defense, e.config["site"], e.config["defense"], e.valid_flips]
        )
    ]
    rates = [s.worst_case.rate for s in standings if s.worst_case.rate is not None]
    ranked = [
        s.model_copy(update={"rank": 1 + sum(r < s.worst_case.rate for r in rates)})
        if s.worst_case.rate is not None
        else s
        for s in standings
    ]
    first = entries[0].row
    return Group(
        threat_model=first.threat_model,
        budget=first.budget,
        budget_unit=first.budget_unit,
        limits=first.constrained.limits,
        seed=first.seed,
        examples=first.examples.n,
        task_config=entries[0].config["task"],
        target_hash=entries[0].provenance.target_hash,
        defenses=tuple(sorted(ranked, key=lambda s: s.rank or len(ranked) + 1)),
        entries=tuple(entries),
    )


def _defense(entries: Sequence[Entry], attacks: set[str]) -> DefenseStanding:
    worst = max(entries, key=lambda e: e.row.constrained.rate or 0)
    by_strength = sorted(entries, key=lambda e: -(e.row.recovery.rate or 0))
    return DefenseStanding(
        rank=None,
        defense=worst.row.defense,
        config=worst.config["defense"],
        valid_flips=worst.valid_flips,
        worst_case=_plain(worst.row.constrained),
        worst_attack=_attack(worst),
        attacks=tuple(map(_attack_standing, by_strength)),
        missing_attacks=tuple(sorted(attacks - {_attack(e) for e in entries})),
        flagged=any(e.row.flags for e in entries),
        freedom_hurts=_freedom_hurts([e.row for e in entries]),
    )


def _freedom_hurts(rows: Sequence[Row]) -> bool:
    """Whether constrained recovery is surely above what the same search without limits reached."""
    free = [r.recovery.rate for r in rows if r.attack == UNCONSTRAINED]
    held = [r.recovery.low for r in rows if r.constraint.kind != "none"]
    return any(f is not None and low is not None and f < low for f in free for low in held)


def _attack_standing(entry: Entry) -> AttackStanding:
    row = entry.row
    drift = worst_drift(row)
    return AttackStanding(
        attack=_attack(entry),
        identity=entry.identity,
        recovery=row.recovery,
        constrained=_plain(row.constrained),
        wrong_target=row.controls.wrong_target,
        random_direction=row.controls.random_direction,
        worst_drift=drift[0] if drift else None,
        flops=row.compute.attack.flops,
        seconds=row.compute.attack.seconds,
        flags=row.flags,
    )


def _attack(entry: Entry) -> str:
    """Name and resolved settings: the same attack with fewer steps is another attack."""
    settings = sorted(entry.config["attack"].items())
    return " ".join([entry.row.attack, *(f"{k}={canonical_json(v)}" for k, v in settings)])


def _plain(rate: Rate) -> Rate:
    return Rate(**{name: getattr(rate, name) for name in Rate.model_fields})


def grouped(entries: Iterable[Entry], key: Callable[[Entry], Any]) -> list[list[Entry]]:
    """Entries with equal keys together; groups by key and entries by identity, always alike."""

    def order(entry: Entry) -> str:
        return canonical_json(key(entry))

    ordered = sorted(entries, key=lambda e: (order(e), e.identity))
    return [list(found) for _, found in groupby(ordered, order)]
