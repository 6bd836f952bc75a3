"""What a leaderboard shows, as lines and cells of text, whatever they are printed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.leaderboard import Group, Leaderboard
from saebench_recovery.results.report.numbers import NONE, estimate, number
from saebench_recovery.results.standings import AttackStanding, DefenseStanding
from saebench_recovery.schema import Flag, Rate

HEADS = (
    "rank",
    "defense",
    "behaviour under attack",
    "over seeds",
    "suppressed",
    "kept",
    "KL",
    "flags",
)
LEGEND = (
    """\
Defenses are ranked by the behaviour under attack: of all base examples (the clean model shows
the behaviour), the share on which it still shows, because the defense does not suppress it, or
because the attack recovers it with the defended latents in place. Less is better. Each example is
under the worst of the attacks that count, which stand above the table. Defenses that a paired test
does not tell apart (Holm over the board) share a rank. What is not ranked stands below, with the
reason. Over seeds: the least and the most of that share under any one seed, and how many there are;
only what is drawn for an attack depends on them. Kept: retain examples that the defended model gets
right, of those that the clean one does. A task with several targets counts the examples of all.""",
    """\
A cell of an attack holds the share of suppressed examples that it recovered with the defended
latents in place (drift inside the limits), and in brackets, where it differs, the share that it
recovered at all. An asterisk: the row carries a flag, which stands in the JSON file. Seen: the
share of perturbed prompts on which the defense's detector rang.""",
)


def terms(group: Group) -> str:
    """Under which terms the rows of a group were made."""
    return f"{group.threat_model}, budget {group.budget:g} ({group.budget_unit})"


def heading(board: Leaderboard, group: Group) -> str:
    """The task, and where several groups have the same terms in what this one differs."""
    among = [other for other in board.groups if terms(other) == terms(group)]
    differing = []
    for name in ("limit", "limits", "task_config", "target_hash", "elsewhere"):
        values = {_as_json(other, name) for other in among}
        if len(values) > 1:
            differing.append(f"{name.replace('_', ' ')} {_as_json(group, name)}")
    return ", ".join([board.task, *differing])


def _as_json(group: Group, name: str) -> str:
    return canonical_json(group.model_dump(mode="json", include={name})[name])


def counted(group: Group) -> str:
    """Which attacks the ranks go by."""
    if not group.counted:
        return "No attack but a control was run: nothing is ranked."
    if group.standard_suite:
        return f"Ranked under the standard suite, {', '.join(group.counted)}."
    where = " at places of the attacks' own choice" if group.elsewhere else ""
    return (
        f"Ranked under the worst of {', '.join(group.counted)}{where}. This worst case is "
        "incomplete: no defense here has met a standard suite (auto-*)."
    )


def cells(defense: DefenseStanding) -> list[str]:
    """A defense's own cells; see `HEADS`."""
    return [
        NONE if defense.rank is None else str(defense.rank),
        defense.defense,
        estimate(defense.under_attack),
        over_seeds(defense),
        f"{defense.suppressed} of {defense.base}",
        f"{defense.retain_kept} of {defense.retain_known}",
        number(defense.kl, ".2g"),
        ", ".join(flag_names(defense.flags)) or "none",
    ]


def over_seeds(standing: DefenseStanding | AttackStanding) -> str:
    """Smallest and largest behaviour under attack of any seed, and their number."""
    if standing.spread is None:
        return NONE
    smallest, largest = standing.spread.smallest, standing.spread.largest
    return f"{smallest:.2f} to {largest:.2f} ({len(standing.seeds)})"


def flag_names(flags: Sequence[Flag]) -> list[str]:
    """Every flag once, with its level."""
    return list(dict.fromkeys(f"{flag.name} ({flag.level})" for flag in flags))


def remarks(defense: DefenseStanding) -> Iterator[str]:
    """Why it is not ranked, what would tell it from the one above, what limits its worst case."""
    name = defense.defense
    if defense.unranked:
        yield f"{name} is not ranked: {'; '.join(defense.unranked)}"
    if defense.examples_to_separate is not None:
        yield (
            f"{name} is not told apart from the defense above it; that would take "
            f"about {defense.examples_to_separate} base examples, and it has {defense.base}"
        )
    best = defense.under_attack.rate or 0
    for attack in defense.attacks:
        if (attack.under_attack.rate or 0) > best:
            yield f"{name}: {attack.attack} alone did better than what counts"
    if defense.freedom_hurts:
        yield (
            f"{name}: unconstrained recovered less than a constrained attack, so "
            "the searches were the limit and the worst case flatters it"
        )


def attack_cell(standing: AttackStanding | None) -> str:
    """The share that an attack recovered inside the limits, and in brackets at all."""
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
