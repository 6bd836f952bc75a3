"""What the tuned defenses of the embedded target do.

`python -m tests.tasks.tuned` prints the table of docs/organism.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery import registry
from saebench_recovery.interfaces import Defense, Task
from saebench_recovery.schema import SideEffects
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.side_effects import side_effects
from saebench_recovery.scoring.valid_flips import valid_flips
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target

# What is left out does not suit: without its densest latents the organism still answers the
# questions, and taking refusal latents away makes no model refuse. Of the six classes of tpp
# `conditional` flips five: what tells the sixth is as loud on retained text.
SUITED = [
    ("ioi", "clamp"),
    ("ioi", "ablation"),
    ("ioi", "steering"),
    ("ioi", "conditional"),
    ("ioi", "paired-shift"),
    ("tpp", "clamp"),
    ("tpp", "ablation"),
    ("tpp", "steering"),
    ("tpp", "paired-shift"),
    ("unlearning", "clamp"),
    ("unlearning", "steering"),
    ("refusal", "clamp"),
    ("refusal", "steering"),
]
LABEL = "nurse"  # of tpp; `paired-shift` does not suit all six classes


@dataclass(frozen=True)
class Tuned:
    """A defense on the evaluation split."""

    flips: int
    base: int
    examples: int
    effects: SideEffects


@cache
def organism() -> Target:
    return load_target("organism", "cpu")


@cache
def task(name: str) -> Task:
    """The task as tuned; shared, because what it asks of the clean model is the same."""
    settings = dict(organism().preset.tasks[name].task)
    if name == "tpp":
        settings["label"] = LABEL
    created = registry.create("task", name, settings)
    assert isinstance(created, Task)
    return created


def tuned(name: str, defense: str) -> Tuned:
    fitted = registry.create("defense", defense, organism().preset.tasks[name].defenses[defense])
    assert isinstance(fitted, Defense)
    task(name).fit(organism(), organism().site_for(name, fitted.config.site))
    fitted.fit(organism(), task(name))
    examples = task(name).examples(organism(), "evaluation")
    setting = Setting(organism(), task(name), fitted, Orthogonal(), RunSpec())
    unsuppressed, flips = valid_flips(setting, examples)
    base = len(unsuppressed) + len(flips)
    return Tuned(len(flips), base, len(examples), side_effects(setting))


def main() -> None:
    print("| task | defense | valid flips / base / examples | retained | KL on neutral text |")
    print("|---|---|---|---|---|")
    for name, defense in SUITED:
        one = tuned(name, defense)
        counts = f"{one.flips} / {one.base} / {one.examples}"
        label = f"{name}, {LABEL}" if name == "tpp" else name
        retained = f"{one.effects.retain_kept} of {one.effects.retain_known}"
        kl = f"{one.effects.kl:.3f}"
        print(f"| {label} | {defense} | {counts} | {retained} | {kl} |", flush=True)


if __name__ == "__main__":
    main()
