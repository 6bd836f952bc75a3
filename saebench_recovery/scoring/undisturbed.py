"""A fitted defense before any attack: what it flips, what it breaks, and what is wrong with it.

None of this depends on the attack, so attacks on one defense share it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import get_args

from torch import Tensor

from saebench_recovery.base.progress import Progress
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense, Split, Task
from saebench_recovery.model.meter import Meter, total_cost
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.sae.latents import Latents
from saebench_recovery.schema import BaseExample, Cost, ExampleCounts, SideEffects, Spread
from saebench_recovery.scoring.check.catalogue import refuse
from saebench_recovery.scoring.check.preflight import Preflight, preflight
from saebench_recovery.scoring.check.task_examples import clustered
from saebench_recovery.scoring.fit import fit, fit_task
from saebench_recovery.scoring.monitor import FalseAlarms, false_alarms
from saebench_recovery.scoring.retain import Retain
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.side_effects import side_effects
from saebench_recovery.scoring.valid_flips import (
    evaluation_examples,
    expected_by_chance,
    halves,
    valid_flips,
)
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target


@dataclass(frozen=True)
class Undisturbed:
    """A fitted task and defense on a target, and all that was seen of them before any attack.

    `held` are the latents that an attack has to keep in place; `cost` is what all of this cost,
    and part of every row that builds on it.
    """

    target: Target
    task: Task
    defense: Defense
    held: Mapping[Site, Latents]
    checks: Preflight
    examples: int
    chance: float | None
    unsuppressed: Sequence[BaseExample]
    flips: Sequence[Flip]
    effects: SideEffects
    retain: Retain
    ringing: FalseAlarms | None
    rule: DriftRule
    cost: Cost
    _spreads: dict[Site, tuple[Spread, Cost]] = field(default_factory=dict)

    def under(self, attack: Attack, spec: RunSpec) -> Setting:
        """The setting of an attack on it; what was measured once holds for all of them."""
        setting = Setting(self.target, self.task, self.defense, attack, spec, self.held)
        vars(setting).update(
            drift_rule=deepcopy(self.rule), retain=self.retain, false_alarms=self.ringing
        )
        _ = setting.judges_before  # now, as the attack is asked for its sites next
        return setting

    def measured(self, setting: Setting) -> Cost:
        """Give an attack's setting the spreads of its sites; what it costs to measure them.

        The same whether another attack needed them before, so that a row says what it costs alone.
        """
        sites = setting.measured_sites
        for site in sites:
            if site not in self._spreads:
                meter = Meter()
                with meter.counting():
                    found = setting.spread(site)
                self._spreads[site] = found, meter.cost()
        vars(setting).update(spreads={str(site): self._spreads[site][0] for site in sites})
        return total_cost([self._spreads[site][1] for site in sites])

    def only(self, ids: Collection[str], *, learned: bool) -> Undisturbed:
        """The same with some of its flips, and with those that an attack has learned from."""
        taught = {flip.example.id for flip in halves(self.flips)[0]} if learned else set[str]()
        kept = [f for f in self.flips if f.example.id in ids or f.example.id in taught]
        return replace(self, flips=kept)

    def counts(self, learned: int) -> ExampleCounts:
        """Examples by what became of them, where the attack learned from so many flips."""
        return ExampleCounts(
            n=self.examples,
            base=len(self.unsuppressed) + len(self.flips),
            valid=len(self.flips),
            learned=learned,
            chance=self.chance,
        )


def undisturbed(setting: Setting, progress: Progress) -> Undisturbed:
    """Fit the setting's task and defense, check them, and make the clean and defended passes.

    Of the setting's attack nothing is asked, and of its spec only what comes before an attack.

    Raises:
        UserError: the plugins do not fit the target, or the model computes NaN.
    """
    target, task, defense = setting.target, setting.task, setting.defense
    progress(f"{task.label}: fitting {defense.name}", 0, 1)
    # What a task does once for all its variants and for whoever asks first is no row's cost.
    fit_task(setting)
    for split in get_args(Split):
        task.examples(target, split)
    meter = Meter()
    with meter.counting():
        examples = evaluation_examples(setting)
        fit(setting)
        checks = preflight(setting, examples)
        refuse(checks.findings)
        held = _held(defense, checks.edited)
        setting = replace(setting, held=held)
        unsuppressed, flips = valid_flips(setting, clustered(target, examples), checks.defended)
        effects = side_effects(setting)
        ringing = false_alarms(setting.active, examples)
        rule = setting.drift_rule
    return Undisturbed(
        target=target,
        task=task,
        defense=defense,
        held=held,
        checks=checks,
        examples=len(examples),
        chance=expected_by_chance(task, examples),
        unsuppressed=unsuppressed,
        flips=flips,
        effects=effects,
        retain=setting.retain,
        ringing=ringing,
        rule=rule,
        cost=meter.cost(),
    )


def _held(defense: Defense, edited: Mapping[Site, Tensor]) -> dict[Site, Latents]:
    """Of the declared latents those that the defense edits; where it edits none, all."""
    held = {}
    for site, latents in defense.latents.items():
        chosen_S = edited[site].to(latents.features.device)
        some = bool(chosen_S.any()) and not bool(chosen_S.all())
        held[site] = latents.dictionary.defended(latents.features[chosen_S]) if some else latents
    return held
