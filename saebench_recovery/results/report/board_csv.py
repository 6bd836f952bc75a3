"""A leaderboard as CSV: a line for every defense under every attack that was run on it."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

from saebench_recovery.results.leaderboard import Group, Leaderboard
from saebench_recovery.results.report.escape import spreadsheet
from saebench_recovery.results.standings import AttackStanding, DefenseStanding
from saebench_recovery.results.summary import estimate_columns
from saebench_recovery.scoring import measures

OF_GROUP = ("threat_model", "budget", "budget_unit", "limit", "target_hash")
OF_DEFENSE = ("rank", "defense", "examples", "base", "suppressed", "retain_known", "retain_kept")
OF_ATTACK = ("attack", "worst_drift", "flops", "seconds")


def board_csv(board: Leaderboard) -> str:
    """Estimates have three columns, with the ends of their interval; what is not known is empty."""
    lines = flat(board)
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(lines[0] if lines else ())
    writer.writerows([_cell(value) for value in line.values()] for line in lines)
    return file.getvalue()


def flat(board: Leaderboard) -> list[dict[str, Any]]:
    """A line for every defense under every attack, by the names of its columns."""
    return [
        {"target": board.target, "task": board.task, **_line(group, defense, attack)}
        for group in board.groups
        for defense in group.defenses
        for attack in defense.attacks
    ]


def _line(group: Group, defense: DefenseStanding, attack: AttackStanding) -> dict[str, Any]:
    columns = {
        **{name: getattr(group, name) for name in OF_GROUP},
        **{name: getattr(defense, name) for name in OF_DEFENSE},
        **{name: getattr(attack, name) for name in OF_ATTACK},
        "seeds": " ".join(map(str, attack.seeds)),
        **estimate_columns("under_attack", attack.under_attack),
        "under_attack_smallest": attack.spread and attack.spread.smallest,
        "under_attack_largest": attack.spread and attack.spread.largest,
    }
    for measure in measures.MEASURES:
        columns |= estimate_columns(measure.name, attack.measures[measure.name])
    flags = [f"{flag.name} ({flag.level})" for flag in attack.flags]
    return {**columns, "flags": " ".join(flags), "identities": " ".join(attack.identities)}


def _cell(value: Any) -> Any:
    return spreadsheet(value) if isinstance(value, str) else value
