"""What each member of the standard suite breaks alone: `python -m tests.ablation.table`.

A column for each defense and task: of its valid flips, those that an attack recovers inside the
limits, and in brackets those that it alone does. Each attack meets every flip, and its search may
spend the same FLOPs on each. Attacks that are no members stand below, to be seen as superfluous.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from saebench_recovery.attacks.auto import TASK, AutoV2

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
    "clamp, ioi": ("clamp", STRONG, IOI, 64),
    "reconstruction, ioi": ("reconstruction", {}, IOI, 64),
    "trajectory, ioi": ("trajectory", {}, IOI, 64),
    "negated gradient, ioi": ("h-neg-grad", {"latents": 32}, IOI, 64),
    "rounded, ioi": ("h-round", {"latents": 32}, IOI, 64),
    "reconstruction, refusal": ("reconstruction", {}, ("refusal", {}), 24),
    "trajectory, refusal": ("trajectory", {}, ("refusal", {}), 24),
}
NO_MEMBERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("random-direction", TASK),
    ("minimal", TASK),
)


def broken(member: Setting, flips: Sequence[Flip]) -> tuple[set[str], float]:
    """The flips that an attack recovers inside the limits, and the FLOPs that it spent on each."""
    meter = Meter()
    with meter.counting():
        whole = posed(member, flips, meter)
        problem = whole.rows(torch.arange(len(flips)) * whole.variants + member.head)
        before = meter.flops
        found = Attack.run(member.attack, problem)
        spent = (meter.flops - before) / max(1, len(flips))
    replay = Replay(member, [flip.example for flip in flips], found)
    inside_E = (replay.recovered_E & replay.within_E).tolist()
    return {f.example.id for f, inside in zip(flips, inside_E, strict=True) if inside}, spent


def cell(target: Target, name: str, spec: RunSpec) -> tuple[int, Mapping[str, set[str]]]:
    """Valid flips, and those that each attack breaks."""
    defense_name, defense_config, (task_name, task_config), limit = CELLS[name]
    task = cast("Task", registry.create("task", task_name, task_config))
    own = target.preset.tasks[task_name].defenses.get(defense_name, {})
    defense = cast("Defense", registry.create("defense", defense_name, own | defense_config))
    setting = Setting(target, task, defense, AutoV2(), spec.model_copy(update={"limit": limit}))
    task.fit(target, target.site_for(task_name, None))
    examples = evaluation_examples(setting)
    fit(setting)
    _, flips = valid_flips(setting, examples)
    found: dict[str, set[str]] = {}
    others = [cast("Attack", registry.create("attack", *one)) for one in NO_MEMBERS]
    members = [m.attack for m in setting.members]
    for attack in (*members, *others):
        member = Setting(target, task, defense, attack, setting.spec, in_suite=True)
        vars(member).update(drift_rule=setting.drift_rule)
        found[attack.name], spent = broken(member, flips)
        count = len(found[attack.name])
        print(f"{name}, {attack.name}: {count} of {len(flips)}, {spent:.2g} FLOPs", flush=True)
    return len(flips), found


def table(cells: Mapping[str, tuple[int, Mapping[str, set[str]]]]) -> str:
    """A row for each attack, a column for each cell."""
    attacks = [name for name, _ in (*AutoV2.members, *NO_MEMBERS)]
    heads = [f"{name} ({flips} flips)" for name, (flips, _) in cells.items()]
    lines = [["attack", *heads], ["---"] * (1 + len(heads))]
    for attack in attacks:
        lines.append([f"`{attack}`", *(_shown(found, attack) for _, found in cells.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(found: Mapping[str, set[str]], attack: str) -> str:
    if attack not in found:
        return "no such answer"
    outside = {name for name, _ in NO_MEMBERS} - {attack}
    others = [ids for name, ids in found.items() if name != attack and name not in outside]
    alone = found[attack].difference(*others)
    return f"{len(found[attack])} ({len(alone)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", choices=list(CELLS), action="append")
    parser.add_argument("--flops", type=float, default=None, help="on each flip")
    parser.add_argument("--budget-unit", default="relative")
    given = parser.parse_args()
    spec = RunSpec(budget_unit=given.budget_unit, flops=given.flops)
    target = load_target("organism", "cpu")
    print(table({name: cell(target, name, spec) for name in given.cell or CELLS}))


if __name__ == "__main__":
    main()
