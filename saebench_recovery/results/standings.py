"""A defense under all attacks that were run on it, and how such defenses rank.

A defense is as good as the strongest attack found against it, so its rank goes by the worst case
of constrained recovery; attacks are compared on the same defense and the same valid flips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from pydantic import Field

from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.summary import worst_drift
from saebench_recovery.schema import Count, Finite, Mean, Provenance, Rate, Row, Stored

UNCONSTRAINED = "unconstrained"  # the attack that every constrained one is held against


class Entry(Stored):
    """One row with all that is needed to check it."""

    identity: str
    command: str = Field(description="repeats the run that the row is from")
    config: dict[str, Any] = Field(description="resolved settings of task, defense and attack")
    valid_flips: str = Field(description="SHA-256 of the ids of the examples that were attacked")
    provenance: Provenance
    row: Row


class AttackStanding(Stored):
    """An attack on one defense; the strongest comes first."""

    attack: str
    identity: str
    measures: dict[str, Rate | Mean] = Field(description="see `scoring.measures`")
    worst_drift: Finite | None = Field(description="largest relative drift, examples and scopes")
    flops: Count
    seconds: Finite
    flags: tuple[str, ...]


class DefenseStanding(Stored):
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


def ranked(entries: Sequence[Entry]) -> tuple[DefenseStanding, ...]:
    """The standings of all defenses among comparable entries, the most robust first."""
    attacks = {_attack(e) for e in entries}
    standings = [
        _defense(of_defense, attacks)
        for of_defense in grouped(
            entries, lambda e: [e.row.defense, e.config["site"], e.config["defense"], e.valid_flips]
        )
    ]
    rates = [s.worst_case.rate for s in standings if s.worst_case.rate is not None]
    with_ranks = [
        s.model_copy(update={"rank": 1 + sum(r < s.worst_case.rate for r in rates)})
        if s.worst_case.rate is not None
        else s
        for s in standings
    ]
    return tuple(sorted(with_ranks, key=lambda s: s.rank or len(with_ranks) + 1))


def _defense(entries: Sequence[Entry], attacks: set[str]) -> DefenseStanding:
    worst = max(entries, key=lambda e: e.row.constrained.rate or 0)
    by_strength = sorted(entries, key=lambda e: -(e.row.recovery.rate or 0))
    return DefenseStanding(
        rank=None,
        defense=worst.row.defense,
        config=worst.config["defense"],
        valid_flips=worst.valid_flips,
        worst_case=worst.row.constrained,
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
        measures=row.measures,
        worst_drift=drift[0] if drift else None,
        flops=row.compute.attack.flops,
        seconds=row.compute.attack.seconds,
        flags=row.flags,
    )


def _attack(entry: Entry) -> str:
    """Name and resolved settings: the same attack with fewer steps is another attack."""
    settings = sorted(entry.config["attack"].items())
    return " ".join([entry.row.attack, *(f"{k}={canonical_json(v)}" for k, v in settings)])


def grouped(entries: Iterable[Entry], key: Callable[[Entry], Any]) -> list[list[Entry]]:
    """Entries with equal keys together; groups by key and entries by identity, always alike."""

    def order(entry: Entry) -> str:
        return canonical_json(key(entry))

    ordered = sorted(entries, key=lambda e: (order(e), e.identity))
    return [list(alike) for _, alike in groupby(ordered, order)]
