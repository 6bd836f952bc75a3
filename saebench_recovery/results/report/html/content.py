"""What the page shows: a line for every defense of every board, and what opens below it.

All of it is text and numbers. The page's script puts text into the document as text, so that no
name can be markup there; `printable` has made every character of it visible before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from saebench_recovery.results.entry import Entry
from saebench_recovery.results.leaderboard import Group, Leaderboard
from saebench_recovery.results.report import attribution_lines, standing_lines
from saebench_recovery.results.report.html.points import point, standing
from saebench_recovery.results.report.numbers import NONE, estimate, number
from saebench_recovery.results.reported import Reported
from saebench_recovery.results.standings import AttackStanding, DefenseStanding
from saebench_recovery.schema import Attribution, TaskAttribution
from saebench_recovery.scoring import measures

FILTERS = ("target", "task", "terms")
HEADS = (*FILTERS, *standing_lines.HEADS, "worst attack")
ATTACK_HEADS = (
    "attack",
    "under attack",
    "over seeds",
    "drift, worst",
    "FLOPs on a flip",
    "seconds",
    "flags",
)
Content = dict[str, Any]


def lines(reported: Reported) -> list[Content]:
    """A line for each defense; `cells` go by `HEADS`, and `order` holds what they are sorted by."""
    found: list[Content] = []
    for board in reported.boards:
        for group in board.groups:
            of = _GroupLines(board, group, reported.attributions)
            found += [of.line(one, place) for place, one in enumerate(group.defenses)]
    return found


class _GroupLines:
    """The lines of one group of a board."""

    def __init__(
        self, board: Leaderboard, group: Group, attributions: Mapping[str, Attribution]
    ) -> None:
        self.where = [
            board.target,
            standing_lines.heading(board, group),
            standing_lines.terms(group),
        ]
        self.group, self.attributions = group, attributions
        self.ranks = [defense.rank for defense in group.defenses]
        self.entries: dict[str, list[Entry]] = {}
        for entry in group.entries:
            self.entries.setdefault(entry.identity, []).append(entry)

    def line(self, defense: DefenseStanding, place: int) -> Content:
        rank, *cells = standing_lines.cells(defense)
        tied = defense.rank is not None and self.ranks.count(defense.rank) > 1
        rate = defense.under_attack.rate
        order = [
            *self.where,
            place,
            defense.defense,
            2.0 if rate is None else rate,
            defense.spread.largest - defense.spread.smallest if defense.spread else 0.0,
            -defense.suppressed,
            -defense.retain_kept,
            defense.kl or 0.0,
            cells[-1],
            defense.worst_attack,
        ]
        return {
            "cells": [
                *self.where, f"{rank} (tie)" if tied else rank, *cells, defense.worst_attack
            ],
            "order": order,
            "ranked": defense.rank is not None,
            "remarks": [standing_lines.counted(self.group), *standing_lines.remarks(defense)],
            "flags": [[f"{f} ({f.level})", f.sentence, f.remedy] for f in defense.flags],
            "attacks": [self._attack(attack) for attack in defense.attacks],
            "standing": standing(defense, self.where),
            "points": [
                point(defense, attack, self.where) for attack in defense.attacks
            ],
        }  # fmt: skip

    def _attack(self, attack: AttackStanding) -> Content:
        flips = attack.measures["recovery"].n
        return {
            "cells": [
                attack.attack,
                estimate(attack.under_attack),
                standing_lines.over_seeds(attack),
                number(attack.worst_drift, ".2g"),
                number(attack.flops / flips if flips else None, ".2g"),
                number(attack.seconds, ".3g"),
                ", ".join(standing_lines.flag_names(attack.flags)) or "none",
            ],
            "figures": [
                [measure.title, estimate(attack.measures[measure.name])]
                for measure in measures.MEASURES
            ],
            "entries": [
                self._entry(entry)
                for identity in attack.identities
                for entry in self.entries.get(identity, ())
            ],
        }

    def _entry(self, entry: Entry) -> Content:
        row, made = entry.row, entry.provenance
        attribution = self.attributions.get(entry.identity)
        return {
            "title": f"{row.task}, run {entry.identity}",
            "command": entry.command,
            "facts": [
                ["examples", f"{row.examples.n}, {row.examples.base} base"],
                ["valid flips", f"{row.examples.valid}, of {row.examples.clusters} source items"],
                ["constraint", f"{row.constraint.kind}, rank {row.constraint.rank}"],
                ["smallest norm that recovers", number(row.curve.median_norm_recovers)],
                ["... that injects", number(row.curve.median_norm_injects)],
                ["commit", made.git_commit or NONE],
                ["packages", ", ".join(f"{k} {v}" for k, v in sorted(made.packages.items()))],
                ["device", f"{made.device}, {made.dtype}"],
                ["files of the target", made.target_hash],
                ["data", made.data_hash],
                *([f"source of the {kind}", one] for kind, one in entry.sources.items()),
            ],
            "suite": [
                [one.attack, f"{one.broken} of {one.tried}", f"{one.flops:.2g}", one.failed]
                for one in row.suite
            ],
            "attribution": [
                kind
                for task in (attribution.tasks if attribution else ())
                if task.task == row.task
                for kind in _attributed(task)
            ],
        }


def _attributed(task: TaskAttribution) -> Iterator[Content]:
    for delta in task.deltas:
        heads = attribution_lines.part_heads(task, delta)
        yield {
            "title": f"{delta.source} deltas: {delta.verdict}",
            "heads": heads,
            "rows": list(attribution_lines.part_rows(delta)),
            "bars": [
                {
                    "part": title,
                    "share": part.share.mean,
                    "low": part.share.low,
                    "high": part.share.high,
                }
                for title, part in zip(heads[1:], delta.parts, strict=True)
                if part.share is not None and part.share.mean is not None
            ],
        }
