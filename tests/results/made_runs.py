"""Boards of runs that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from saebench_recovery.results.leaderboard import Group, Leaderboard, build
from saebench_recovery.results.report.markdown import page

Stored = Callable[..., Path]
"""What the fixture `stored` gives."""


def group_of(runs: Sequence[Path]) -> Group:
    (board,) = build(runs)
    (group,) = board.groups
    return group


def places(group: Group) -> list[tuple[int | None, str]]:
    return [(standing.rank, standing.defense) for standing in group.defenses]


def page_of(group: Group) -> str:
    return page([Leaderboard(target="organism", task="alpha", groups=(group,))])
