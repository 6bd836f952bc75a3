"""The CSV file of a board has its figures, a line for each defense under each attack."""

from __future__ import annotations

import csv
from io import StringIO

import pytest

from saebench_recovery.results.leaderboard import Group, Leaderboard
from saebench_recovery.results.report.board_csv import board_csv
from saebench_recovery.results.standings import AttackStanding, DefenseStanding, Spread
from tests.fakes import flag, made, rate, row


def test_every_standing_is_a_line() -> None:
    attacks = [
        made(AttackStanding, attack=name, under_attack=rate(k), measures=row().measures, **seeds)
        for name, k, seeds in (
            ("gcg", 90, {"seeds": (0, 1), "spread": made(Spread, smallest=0.8, largest=1.0)}),
            ("orthogonal", 40, {}),
        )
    ]
    alarming = attacks[1].model_copy(update={"flags": (flag("no-gradient"), flag("few", "note"))})
    defenses = [
        made(DefenseStanding, defense="=HYPERLINK(1)", rank=None, attacks=tuple(attacks)),
        made(DefenseStanding, defense="clamp, latents=4", rank=1, attacks=(alarming,)),
    ]
    group = made(Group, defenses=tuple(defenses))
    text = board_csv(made(Leaderboard, target="organism", task="ioi", groups=(group,)))
    first, second, third = csv.DictReader(StringIO(text))
    assert [line["attack"] for line in (first, second, third)] == [
        "gcg",
        "orthogonal",
        "orthogonal",
    ]
    assert (first["target"], first["task"]) == ("organism", "ioi")
    assert (first["defense"], first["rank"]) == ("'=HYPERLINK(1)", "")  # no formula, and no rank
    assert (third["defense"], third["rank"]) == ("clamp, latents=4", "1")
    estimate = [float(first[f"under_attack{end}"]) for end in ("", "_low", "_high")]
    assert estimate == pytest.approx([0.9, 0.85, 0.95])
    assert float(first["constrained"]) == 0.8
    over_seeds = ("seeds", "under_attack_smallest", "under_attack_largest")
    assert [first[name] for name in over_seeds] == ["0 1", "0.8", "1.0"]
    assert [second[name] for name in over_seeds] == ["", "", ""]
    assert third["flags"] == "no-gradient (caution) few (note)"
    assert board_csv(made(Leaderboard)) == "\n"
