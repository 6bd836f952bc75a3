"""Leaderboards as a page to read: for each task, defenses down and attacks across."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from saebench_recovery.results.leaderboard import Group, Leaderboard
from saebench_recovery.results.report import standing_lines
from saebench_recovery.results.report.escape import markdown
from saebench_recovery.results.standings import DefenseStanding


def page(boards: Iterable[Leaderboard]) -> str:
    """Markdown of some leaderboards of one target."""
    every = [(board, group) for board in boards for group in board.groups]
    lines = [f"# {markdown(every[0][0].target)}", "", "\n\n".join(standing_lines.LEGEND)]
    for terms in sorted({standing_lines.terms(group) for _, group in every}):
        lines += ["", f"## {terms}"]
        for board, group in every:
            if standing_lines.terms(group) == terms:
                heading = markdown(standing_lines.heading(board, group))
                lines += ["", f"### {heading}", "", *_section(group)]
    return "\n".join(lines) + "\n"


def table(group: Group, most: int | None = None) -> list[str]:
    """The lines of a group's table, with its first `most` defenses."""
    attacks = sorted({a.attack for defense in group.defenses for a in defense.attacks})
    heads = [*standing_lines.HEADS, *map(markdown, attacks)]
    return [
        _line(heads),
        _line(["---:", "---", *["---:"] * (len(heads) - 2)]),
        *(_line(_row(defense, attacks)) for defense in group.defenses[:most]),
    ]


def _section(group: Group) -> list[str]:
    remarks = [
        f"- {markdown(line)}" for one in group.defenses for line in standing_lines.remarks(one)
    ]
    counted = markdown(standing_lines.counted(group))
    return [counted, "", *table(group), *(["", *remarks] if remarks else [])]


def _row(defense: DefenseStanding, attacks: Sequence[str]) -> list[str]:
    of_attack = {standing.attack: standing for standing in defense.attacks}
    return [
        *map(markdown, standing_lines.cells(defense)),
        *(standing_lines.attack_cell(of_attack.get(attack)) for attack in attacks),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
