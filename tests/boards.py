"""A leaderboard that is made up: so many defenses, each under the same attacks."""

from __future__ import annotations

from random import Random
from typing import Any

from saebench_recovery.results.entry import Entry
from saebench_recovery.results.leaderboard import Group, Leaderboard
from saebench_recovery.results.standings import AttackStanding, DefenseStanding
from saebench_recovery.schema import Curve, Provenance, Row, SuiteMember
from saebench_recovery.scoring.measures import MEASURES
from tests.fakes import flag, made, mean, rate, row

# A name that is markup to a terminal, to HTML and to Markdown.
HOSTILE = "a[/bold]\x1b]0;owned\x07|<script>alert(1)</script>\n# heading `x` [l](javascript:1)"
ATTACKS = ("auto-v2", "gcg", "lagrangian", "orthogonal", "unconstrained")


def board(defenses: int, seed: int = 0, **names: str) -> Leaderboard:
    """A board of one group with `len(ATTACKS)` rows a defense; the first two defenses tie.

    `names` may give the `target`, the `task` and what the `defense` names begin with.
    """
    drawn = Random(seed)
    place = {"target": names.get("target", "organism"), "task": names.get("task", "ioi")}
    every = [f"{names.get('defense', 'defense')} {number}" for number in range(defenses)]
    rows = {(d, a): _row(drawn, defense=d, attack=a, **place) for d in every for a in ATTACKS}
    entries = {key: _entry(drawn, one) for key, one in rows.items()}
    standings = [
        made(
            DefenseStanding,
            rank=None if number == defenses - 1 else max(1, number),
            unranked=("gcg was not run",) if number == defenses - 1 else (),
            defense=defense,
            under_attack=rate(number * 100 // defenses),
            worst_attack=ATTACKS[0],
            attacks=tuple(_standing(rows[defense, a], entries[defense, a]) for a in ATTACKS),
            flags=rows[defense, ATTACKS[0]].flags,
        )
        for number, defense in enumerate(every)
    ]
    group = made(
        Group,
        budget=0.5,
        counted=(ATTACKS[0],),
        standard_suite=True,
        defenses=tuple(standings),
        entries=tuple(entries.values()),
    )
    return made(Leaderboard, **place, groups=(group,))


def _row(drawn: Random, **names: Any) -> Row:
    values = {m.name: _value(drawn, m.kind) for m in MEASURES if m.name != "constrained"}
    members = tuple(
        made(SuiteMember, attack=name, tried=drawn.randrange(100), flops=drawn.randrange(10**12))
        for name in ATTACKS[1:]
    )
    return row(
        constrained=drawn.randrange(101),
        **names,
        **values,
        flags=(flag("injection-as-easy"), flag("few-valid-flips", "note")),
        suite=members,
        curve=made(Curve, median_norm_recovers=drawn.random()),
    )


def _value(drawn: Random, kind: str) -> Any:
    return rate(drawn.randrange(101)) if kind == "rate" else mean(drawn.random())


def _entry(drawn: Random, of: Row) -> Entry:
    packages = {"saebench-recovery": "0.2.0", "torch": "2.13.0", "transformers": "5.24.0"}
    made_by = made(
        Provenance, packages=packages, git_commit=f"{drawn.getrandbits(160):040x}", device="cpu"
    )
    return Entry(
        identity=f"{drawn.getrandbits(64):016x}",
        command=f"saebench run --defense '{of.defense}' --attack {of.attack} --task {of.task}",
        config={},
        sources={},
        standard_suite=of.attack == ATTACKS[0],
        limit=None,
        flops=None,
        valid_flips="",
        provenance=made_by,
        row=of,
    )


def _standing(of: Row, entry: Entry) -> AttackStanding:
    return made(
        AttackStanding,
        attack=of.attack,
        identities=(entry.identity,),
        under_attack=of.under_attack,
        measures=of.measures,
        worst_drift=of.fidelity.mean,
        flops=10**9 + int(entry.identity[:8], 16),
        flags=of.flags,
    )
