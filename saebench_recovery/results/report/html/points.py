"""Points of the plots: a defense on a board, and one attack on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from saebench_recovery.results.report.numbers import estimate
from saebench_recovery.results.standings import AttackStanding, DefenseStanding
from saebench_recovery.results.summary import interval

SMALLEST_DRIFT = 1e-9  # what is below, or zero, stands at the edge of a logarithmic axis


def attacks(points: Iterable[dict[str, Any]]) -> list[str]:
    """The names of all attacks among the points."""
    return sorted({one["attack"] for one in points})


def standing(defense: DefenseStanding, where: Sequence[str]) -> dict[str, Any]:
    """The behaviour under attack with its interval; `where` is target, task and terms."""
    rate = defense.under_attack
    return {
        "defense": defense.defense,
        "board": f"{where[0]}, {where[1]}",
        "terms": where[2],
        "shows": rate.rate,
        "low": rate.low,
        "high": rate.high,
    }


def point(defense: DefenseStanding, attack: AttackStanding, where: Sequence[str]) -> dict[str, Any]:
    """Recovery with its interval, and the three figures that it is plotted against."""
    recovery, norm = attack.measures["recovery"], interval(attack.measures["norm"])
    known, flips = interval(recovery), recovery.n
    drift = attack.worst_drift
    return {
        "defense": defense.defense,
        "attack": attack.attack,
        "board": ", ".join(where),
        "recovery": known.centre if known else None,
        "low": known.low if known else None,
        "high": known.high if known else None,
        "recovered": estimate(recovery),
        "constrained": estimate(attack.measures["constrained"]),
        "drift": None if drift is None else max(drift, SMALLEST_DRIFT),
        "norm": norm.centre if norm else None,
        "flops": attack.flops / flips if flips and attack.flops else None,
    }
