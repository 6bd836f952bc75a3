"""What each member of the standard suite breaks alone: `python -m tests.ablation.table`.

A column for each defense and task: of its valid flips, those that an attack recovers inside the
limits, and in brackets those that no member but this one does. Then the same without the limits.
Each attack meets every flip, and its search may spend the same FLOPs on each. Attacks that are no
members stand below, to be seen as superfluous.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from saebench_recovery.attacks.auto import TASK, AutoV1, AutoV2

import tests.cases.defenses  # noqa: F401  # registers defenses with dishonest gradients
from saebench_recovery import registry
from saebench_recovery.interfaces import Attack, Defense, Task
from saebench_recovery.model.meter import Meter
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.fit import fit
from saebench_recovery.scoring.replay import Replay
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples, valid_flips
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target

STRONG = {"latents": 32, "multiplier": -2.0}
IOI = ("ioi", {"against": "subject"})
CELLS: dict[str, tuple[str, dict[str, Any], tuple[str, dict[str, Any]], int]] = {
    "clamp, ioi": ("clamp", STRONG, IOI, 32),
    "reconstruction, ioi": ("reconstruction", {}, IOI, 32),
    "trajectory, ioi": ("trajectory", {}, IOI, 32),
    "negated gradient, ioi": ("h-neg-grad", {"latents": 32}, IOI, 32),
    "rounded, ioi": ("h-round", {"latents": 32}, IOI, 32),
    "clamp, refusal": ("clamp", {}, ("refusal", {}), 12),
    "reconstruction, refusal": ("reconstruction", {}, ("refusal", {}), 12),
    "trajectory, refusal": ("trajectory", {}, ("refusal", {}), 12),
}
# Those of the first suite that the present one does without, and one that asks for other figures.
NO_MEMBERS = (
    *(one for one in AutoV1.members if one[0] not in dict(AutoV2.members)),
    ("minimal", TASK | {"steps": 30, "bisections": 12}),
)


@dataclass(frozen=True)
class Cell:
    """Valid flips of a defense, and which each attack recovers, inside the limits and at all."""

    flips: int
    inside: Mapping[str, AbstractSet[str]]
    at_all: Mapping[str, AbstractSet[str]]


def replayed(member: Setting, flips: Sequence[Flip]) -> Replay:
    """What an attack found for the right answer, from the tokens."""
    meter = Meter()
    with meter.counting():
        whole = posed(member, flips, meter)
        problem = whole.rows(torch.arange(len(flips)) * whole.variants + member.head)
        found = Attack.run(member.attack, problem)
    return Replay(member, [flip.example for flip in flips], found)


def cell(target: Target, name: str, spec: RunSpec) -> Cell:
    """All attacks that apply, on all flips."""
    defense_name, defense_config, (task_name, task_config), limit = CELLS[name]
    task = cast("Task", registry.create("task", task_name, task_config))
    own = target.preset.tasks[task_name].defenses.get(defense_name, {})
    defense = cast("Defense", registry.create("defense", defense_name, own | defense_config))
    setting = Setting(target, task, defense, AutoV2(), spec.model_copy(update={"limit": limit}))
    task.fit(target, target.site_for(task_name, None))
    examples = evaluation_examples(setting)
    fit(setting)
    _, flips = valid_flips(setting, examples)
    inside: dict[str, set[str]] = {}
    at_all: dict[str, set[str]] = {}
    members = setting.members
    others = [cast("Attack", registry.create("attack", *one)) for one in NO_MEMBERS]
    for member in (*members, *(replace(members[0], attack=other) for other in others)):
        replay = replayed(member, flips)
        attack = member.attack.name
        for of, shown_E in (
            (inside, replay.recovered_E & replay.within_E),
            (at_all, replay.recovered_E),
        ):
            shown = zip(flips, shown_E.tolist(), strict=True)
            of[attack] = {flip.example.id for flip, yes in shown if yes}
        print(f"{name}, {attack}: {len(inside[attack])} of {len(flips)}", flush=True)
    return Cell(len(flips), inside, at_all)


def table(found: Mapping[str, tuple[int, Mapping[str, AbstractSet[str]]]]) -> str:
    """A row for each attack, a column for each cell."""
    attacks = [name for name, _ in (*AutoV2.members, *NO_MEMBERS)]
    heads = [f"{name} ({flips} flips)" for name, (flips, _) in found.items()]
    lines = [["attack", *heads], ["---"] * (1 + len(heads))]
    for attack in attacks:
        lines.append([f"`{attack}`", *(_shown(of, attack) for _, of in found.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(found: Mapping[str, AbstractSet[str]], attack: str) -> str:
    if attack not in found:
        return "-"
    members = {name for name, _ in AutoV2.members} - {attack}
    others = {id for name, ids in found.items() if name in members for id in ids}
    alone = found[attack] - others
    return f"{len(found[attack])} ({len(alone)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", choices=list(CELLS), action="append")
    parser.add_argument("--flops", type=float, default=3e8, help="on each flip")
    parser.add_argument("--budget-unit", default="relative")
    given = parser.parse_args()
    spec = RunSpec(budget_unit=given.budget_unit, flops=given.flops)
    target = load_target("organism", "cpu")
    cells = {name: cell(target, name, spec) for name in given.cell or CELLS}
    print(table({name: (one.flips, one.inside) for name, one in cells.items()}), end="\n\n")
    print(table({name: (one.flips, one.at_all) for name, one in cells.items()}))


if __name__ == "__main__":
    main()
