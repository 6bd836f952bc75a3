"""Leaderboards as a page to read: for each task, defenses down, attacks across."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.leaderboard import Leaderboard
from saebench_recovery.results.report.escape import markdown
from saebench_recovery.results.report.numbers import NONE, mean_number
from saebench_recovery.results.standings import Entry, grouped
from saebench_recovery.results.summary import task_of

LEGEND = """\
A cell holds the share of valid flips that the attack recovered with the defended latents in place
(drift inside the limits), and in brackets, where it differs, the share that it recovered at all.
`*`: the row carries a flag, which stands in the JSON file. `seen`: the share of perturbed prompts
on which the defense's detector rang. Defenses come in the order of their worst case. A task with
several targets shows the unweighted mean over them."""


def page(boards: Iterable[Leaderboard]) -> str:
    """Markdown of some leaderboards of one target."""
    entries = [e for board in boards for group in board.groups for e in group.entries]
    lines = [f"# {markdown(entries[0].row.target)}", "", LEGEND]
    for comparable in grouped(entries, _terms):
        row = comparable[0].row
        budget = f"budget {row.budget:g} ({row.budget_unit})"
        lines += ["", f"## {row.threat_model}, {budget}, seed {row.seed}"]
        for of_task in grouped(comparable, lambda e: task_of(e.row)):
            lines += ["", f"### {markdown(task_of(of_task[0].row))}", "", *_table(of_task)]
    return "\n".join(lines) + "\n"


def _terms(entry: Entry) -> list[object]:
    row = entry.row
    return [row.threat_model, row.budget, row.budget_unit, row.seed]


def _table(entries: Sequence[Entry]) -> list[str]:
    defense, attack = _labels(entries, "defense"), _labels(entries, "attack")
    attacks = sorted({attack(e) for e in entries})
    rows = [
        {a: [e for e in of_defense if attack(e) == a] for a in attacks}
        for of_defense in grouped(entries, defense)
    ]
    rows.sort(key=lambda by_attack: max(map(_constrained, by_attack.values())))
    heads = ["defense", "flips / examples", "retained", "KL", *map(markdown, attacks)]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for by_attack in rows:
        # Flips and side effects are the defense's own, whatever attacks it.
        own = next(entries for entries in by_attack.values() if entries)
        cells = [
            markdown(defense(own[0])),
            f"{sum(e.row.examples.valid for e in own)} / {sum(e.row.examples.n for e in own)}",
            mean_number([e.row.side_effects.retain_accuracy_defended for e in own], ".2f"),
            mean_number([e.row.side_effects.kl for e in own], ".2g"),
            *map(_cell, by_attack.values()),
        ]
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(entries: Sequence[Entry]) -> str:
    constrained = mean_number([e.row.constrained.rate for e in entries], ".2f")
    recovered = mean_number([e.row.recovery.rate for e in entries], ".2f")
    flag = "*" if any(e.row.flags for e in entries) else ""
    alarmed = [e.row.detection.attacked.rate for e in entries if e.row.detection is not None]
    alarms = f", seen {mean_number(alarmed, '.2f')}" if alarmed and recovered != NONE else ""
    return f"{constrained}{f' ({recovered})' if recovered != constrained else ''}{flag}{alarms}"


def _constrained(entries: Sequence[Entry]) -> float:
    return sum(e.row.constrained.rate or 0 for e in entries) / max(1, len(entries))


def _labels(entries: Sequence[Entry], kind: str) -> Callable[[Entry], str]:
    """What each entry's plugin is called: its name, and settings in which namesakes differ."""

    def name(entry: Entry) -> str:
        return str(getattr(entry.row, kind))

    values: dict[str, dict[str, set[str]]] = {}
    for entry in entries:
        for key, value in entry.config[kind].items():
            values.setdefault(name(entry), {}).setdefault(key, set()).add(canonical_json(value))

    def label(entry: Entry) -> str:
        differing = [
            f"{key}={canonical_json(value)}"
            for key, value in entry.config[kind].items()
            if len(values[name(entry)][key]) > 1
        ]
        return " ".join([name(entry), *differing])

    return label
