"""One (target, task, defense, attack): from a fitted defense to records of its valid flips."""

from __future__ import annotations

from collections.abc import Iterator

from saebench_recovery.base.progress import Progress
from saebench_recovery.interfaces import Attack
from saebench_recovery.model.meter import Meter, total_cost
from saebench_recovery.schema import Compute, Cost, Facts, Finding, PerturbationKind
from saebench_recovery.scoring.check.attack_contract import check_member
from saebench_recovery.scoring.check.catalogue import finding, refuse
from saebench_recovery.scoring.check.other_files import other_files
from saebench_recovery.scoring.journal import Journal
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.turns import Turns, taken_turns
from saebench_recovery.scoring.unchanged import changed, misread
from saebench_recovery.scoring.undisturbed import Undisturbed
from saebench_recovery.scoring.valid_flips import halves
from saebench_recovery.spec import RunSpec


def attacked(
    seen: Undisturbed, attack: Attack, spec: RunSpec, journal: Journal, progress: Progress
) -> Facts:
    """Run one attack against a fitted defense on one task, writing records to the journal.

    What the journal holds already is not computed again. Other attacks on the defense change
    nothing in it.

    Raises:
        UserError: the attack does not fit, or the model computes NaN.
    """
    setting = seen.under(attack, spec)
    own = Meter()
    with own.counting():
        if not setting.mixed:  # what is wrong with a member of a suite is found in its turn
            refuse(check_member(setting, seen.flips[:1]))
    spreads = seen.measured(setting)
    with own.counting():
        setting.measure()
    learned, flips = halves(seen.flips) if attack.learns else ([], seen.flips)
    turns = taken_turns(setting, learned, flips, journal, progress)
    scoring = total_cost([seen.cost, spreads, own.cost()])
    facts = _facts(setting, seen, len(learned), scoring, turns)
    found = (*seen.checks.findings, *seen.checks.afterwards(), *_left_behind(setting))
    found += tuple(other_files(seen.task, seen.defense, *(m.attack for m in setting.members)))
    return facts.model_copy(update={"findings": found})


def _left_behind(setting: Setting) -> Iterator[Finding]:
    """What the plugins have changed of the target, which is the next attack's too."""
    if not setting.watched:
        return
    parts = [*changed(setting.target), *map(str, misread(setting.active.latents))]
    if parts:
        words = f"{setting.attack.title} or {setting.defense.title} changes the target"
        yield finding("target-changed", f"{words}: {parts[0]}")


def _facts(
    setting: Setting,
    seen: Undisturbed,
    learned: int,
    scoring: Cost,
    turns: Turns,
) -> Facts:
    spec, defense, target = setting.spec, setting.defense, setting.target
    examples = [flip.example for flip in seen.flips]
    every = [chunk for of_member in turns.chunks.values() for chunk in of_member]
    return Facts(
        task=setting.task.label,
        target=target.name,
        defense=defense.name,
        attack=setting.attack.name,
        threat_model=spec.threat_model,
        budget=spec.budget,
        budget_unit=spec.budget_unit,
        spreads=setting.spreads,
        curve_budgets=setting.curve_budgets,
        limits=spec.limits,
        seed=spec.seed,
        features={str(site): latents for site, latents in defense.features.items()},
        held={
            str(site): tuple(latents.features.tolist())
            for site, latents in setting.active.latents.items()
        },
        examples=seen.counts(learned),
        unsuppressed=tuple(seen.unsuppressed),
        perturbation=PerturbationKind(
            kind="several" if setting.mixed else setting.attack.space,
            length=setting.attack.length or None,
            elsewhere=setting.acts_elsewhere(examples),
        ),
        members=tuple(turns.chunks),
        member_flops=tuple(sum(c.attacking.flops for c in part) for part in turns.chunks.values()),
        failures=dict(turns.failures),
        side_effects=seen.effects,
        stated_false_alarms=defense.false_alarms,
        false_alarms=None if seen.ringing is None else seen.ringing.counted,
        compute=Compute(
            attack=total_cost([chunk.attacking for chunk in every]),
            scoring=total_cost([scoring, *(chunk.scoring for chunk in every)]),
            model_bytes=target.model_bytes,
            dictionary_bytes=sum(
                latents.kept_bytes + latents.dictionary.kept_bytes
                for latents in defense.latents.values()
            ),
        ),
        forced_sae=any(latents.dictionary.forced for latents in defense.latents.values()),
        rounded=setting.rounded,
    )
