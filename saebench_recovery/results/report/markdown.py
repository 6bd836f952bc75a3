"""Leaderboards as a page to read: for each task, defenses down, attacks across."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.leaderboard import Group, Leaderboard
from saebench_recovery.results.report.escape import markdown
from saebench_recovery.results.report.numbers import NONE, estimate, number
from saebench_recovery.results.standings import AttackStanding, DefenseStanding
from saebench_recovery.schema import Flag, Rate

LEGEND = """\
Defenses are ranked by the **behaviour under attack**: of all base examples (the clean model shows
the behaviour), the share on which it still shows, because the defense does not suppress it, or
because the attack recovers it with the defended latents in place. Less is better. Each example is
under the worst of the attacks that count, which stand above the table. Defenses that a paired test
does not tell apart (Holm over the board) share a rank. What is not ranked stands below, with the
reason.

A cell of an attack holds the share of suppressed examples that it recovered with the defended
latents in place (drift inside the limits), and in brackets, where it differs, the share that it
recovered at all. `*`: the row carries a flag, which stands in the JSON file. `seen`: the share of
perturbed prompts on which the defense's detector rang. `kept`: retain examples that the defended
model gets right, of those that the clean one does. A task with several targets counts the examples
of all."""


def page(boards: Iterable[Leaderboard]) -> str:
    """Markdown of some leaderboards of one target."""
    every = [(board, group) for board in boards for group in board.groups]
    lines = [f"# {markdown(every[0][0].target)}", "", LEGEND]
    for terms in sorted({_terms(group) for _, group in every}):
        lines += ["", f"## {terms}"]
        for board, group in every:
            if _terms(group) == terms:
                among = [g for g in board.groups if _terms(g) == terms]
                lines += [
                    "",
                    f"### {markdown(_heading(board, group, among))}",
                    "",
                    *_section(group),
                ]
    return "\n".join(lines) + "\n"


def _terms(group: Group) -> str:
    return f"{group.threat_model}, budget {group.budget:g} ({group.budget_unit}), seed {group.seed}"


def _heading(board: Leaderboard, group: Group, among: Sequence[Group]) -> str:
    """The task, and where several groups have the same terms in what this one differs."""
    differing = []
    for name in ("limit", "limits", "task_config", "target_hash"):
        values = [canonical_json(other.model_dump(mode="json")[name]) for other in among]
        if len(set(values)) > 1:
            own = canonical_json(group.model_dump(mode="json")[name])
            differing.append(f"{name.replace('_', ' ')} {own}")
    return ", ".join([board.task, *differing])


def _section(group: Group) -> list[str]:
    attacks = sorted({a.attack for defense in group.defenses for a in defense.attacks})
    heads = ["rank", "defense", "behaviour under attack", "suppressed", "kept", "KL", "flags"]
    table = [
        _line([*heads, *map(markdown, attacks)]),
        _line(["---:", "---", *["---:"] * (5 + len(attacks))]),
    ]
    table += [_line(_row(defense, attacks)) for defense in group.defenses]
    return [_counted(group), "", *table, *_remarks(group)]


def _counted(group: Group) -> str:
    if not group.counted:
        return "No attack but a control was run: nothing is ranked."
    if group.standard_suite:
        return f"Ranked under the standard suite, {', '.join(group.counted)}."
    return (
        "Ranked under the worst of " + ", ".join(group.counted) + ". This worst case is "
        "incomplete: no defense here has met a standard suite (`auto-*`)."
    )


def _row(defense: DefenseStanding, attacks: Sequence[str]) -> list[str]:
    of_attack = {standing.attack: standing for standing in defense.attacks}
    return [
        NONE if defense.rank is None else str(defense.rank),
        markdown(defense.defense),
        estimate(defense.under_attack),
        f"{defense.suppressed} of {defense.base}",
        f"{defense.retain_kept} of {defense.retain_known}",
        number(defense.kl, ".2g"),
        ", ".join(_flag_names(defense.flags)) or "none",
        *(_cell(of_attack.get(attack)) for attack in attacks),
    ]


def _flag_names(flags: Sequence[Flag]) -> list[str]:
    return list(dict.fromkeys(f"{flag.name} ({flag.level})" for flag in flags))


def _remarks(group: Group) -> list[str]:
    """Why some are not ranked, what would tell neighbours apart, and what limits a worst case."""
    lines = []
    for defense in group.defenses:
        name = markdown(defense.defense)
        if defense.unranked:
            lines.append(f"- {name} is not ranked: {markdown('; '.join(defense.unranked))}")
        if defense.examples_to_separate is not None:
            lines.append(
                f"- {name} is not told apart from the defense above it; that would take "
                f"about {defense.examples_to_separate} base examples, and it has {defense.base}"
            )
        best = defense.under_attack.rate or 0
        lines += [
            f"- {name}: {markdown(attack.attack)} alone did better than what counts"
            for attack in defense.attacks
            if (attack.under_attack.rate or 0) > best
        ]
        if defense.freedom_hurts:
            lines.append(
                f"- {name}: unconstrained recovered less than a constrained attack, so "
                "the searches were the limit and the worst case flatters it"
            )
    return ["", *lines] if lines else []


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(standing: AttackStanding | None) -> str:
    if standing is None:
        return NONE
    constrained, recovered = (
        number(rate.rate, ".2f") if isinstance(rate, Rate) else NONE
        for rate in (standing.measures["constrained"], standing.measures["recovery"])
    )
    flag = "*" if standing.flags else ""
    alarms = standing.alarmed
    seen = "" if alarms is None or alarms.rate is None else f", seen {alarms.rate:.2f}"
    return f"{constrained}{f' ({recovered})' if recovered != constrained else ''}{flag}{seen}"
