"""One (target, task, defense, attack): from a fitted defense to records of its valid flips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense, Task
from saebench_recovery.model.meter import Meter
from saebench_recovery.sae.latents import Latents
from saebench_recovery.schema import (
    BaseExample,
    Compute,
    Cost,
    ExampleCounts,
    Facts,
    PerturbationKind,
    Rate,
    Record,
    SideEffects,
)
from saebench_recovery.scoring.attack_and_score import posed, score_chunk
from saebench_recovery.scoring.batch_size import flips_that_fit
from saebench_recovery.scoring.check.attack_contract import check_attack
from saebench_recovery.scoring.check.catalogue import refuse
from saebench_recovery.scoring.check.preflight import preflight
from saebench_recovery.scoring.check.task_examples import clustered
from saebench_recovery.scoring.fit import fit
from saebench_recovery.scoring.journal import Journal, Written
from saebench_recovery.scoring.monitor import false_alarms
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.side_effects import side_effects
from saebench_recovery.scoring.suite import unbroken
from saebench_recovery.scoring.valid_flips import (
    evaluation_examples,
    expected_by_chance,
    halves,
    valid_flips,
)
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target


def evaluate(
    target: Target,
    task: Task,
    defense: Defense,
    attack: Attack,
    spec: RunSpec,
    journal: Journal,
    progress: Progress,
) -> Facts:
    """Run one defense against one attack on one task, writing records to the journal.

    What the journal holds already is not computed again.

    Raises:
        UserError: the plugins do not fit the target, or the model computes NaN.
    """
    setting = Setting(target, task, defense, attack, spec)
    scoring = Meter()
    with scoring.counting():
        progress("fitting the defense", 0, 1)
        task.fit(target, target.site_for(task.name, defense.config.site))
        examples = evaluation_examples(setting)
        fit(setting)
        checks = preflight(setting, examples)
        refuse(checks.findings)
        setting = replace(setting, held=_held(defense, checks.edited))
        unsuppressed, flips = valid_flips(setting, clustered(target, examples))
        of_attack = check_attack(setting, flips[:1])
        refuse(of_attack)
        effects = side_effects(setting)
        ringing = false_alarms(setting.active, examples)
    learned, flips = halves(flips) if attack.learns else ([], flips)
    costs: dict[str, list[Written]] = {}
    records: list[Record] = []
    for member in attack.suite():
        left = set(unbroken([f.example.id for f in flips], records))
        part = [f for f in flips if f.example.id in left]
        with scoring.counting():
            of_member = Setting(target, task, defense, member, spec, setting.held).measured()
        costs[member.name] = list(chunks(of_member, learned, part, journal, progress))
        records += [record for chunk in costs[member.name] for record in chunk.records]
    counts = ExampleCounts(
        n=len(examples),
        base=len(unsuppressed) + len(flips) + len(learned),
        valid=len(flips) + len(learned),
        learned=len(learned),
        chance=expected_by_chance(task, examples),
    )
    seen = _Undisturbed(counts, unsuppressed, effects, ringing)
    facts = _facts(setting, seen, scoring.cost(), costs)
    return facts.model_copy(
        update={"findings": (*checks.findings, *of_attack, *checks.afterwards())}
    )


def _held(defense: Defense, edited: Mapping[Site, Tensor]) -> dict[Site, Latents]:
    """Of the declared latents those that the defense edits; where it edits none, all."""
    held = {}
    for site, latents in defense.latents.items():
        chosen_S = edited[site].to(latents.features.device)
        some = bool(chosen_S.any()) and not bool(chosen_S.all())
        held[site] = latents.dictionary.defended(latents.features[chosen_S]) if some else latents
    return held


def chunks(
    setting: Setting,
    learned: Sequence[Flip],
    flips: Sequence[Flip],
    journal: Journal,
    progress: Progress,
) -> Iterator[Written]:
    """Attack and score flips in chunks that fit the memory, after what it learned from others.

    Chunks that the journal holds come first; a last one without records has the cost of learning.

    Raises:
        UserError: not even one flip fits, or the journal holds other flips than these.
    """
    label, attack = setting.task.label, setting.attack
    what = f"{label}: {setting.defense.name} against {attack.name}"
    size = setting.spec.batch_size or flips_that_fit(setting, flips)
    learning = Meter()
    if learned:
        with learning.counting():
            attack.fit(posed(setting.handed_out(), learned[:size], learning).shuffled()[0])
    done = 0
    for chunk in journal.written(label, attack.name):
        expected = [f.example.id for f in flips[done : done + len(chunk.records)]]
        if [record.id for record in chunk.records] != expected:
            raise UserError(f"{what}: the stored records are of other flips; repeat with --force")
        done += len(chunk.records)
        yield chunk
    while done < len(flips):
        progress(what, done, len(flips))
        try:
            scored = score_chunk(setting, flips[done : done + size])
        except torch.OutOfMemoryError:
            if size <= 1:
                raise UserError("one example does not fit the device's memory") from None
            size //= 2
            continue
        journal.append(label, attack.name, scored)
        done += len(scored.records)
        yield Written(scored.records, scored.attacking, scored.scoring)
    progress(what, len(flips), len(flips))
    yield Written((), learning.cost(), Meter().cost())


@dataclass(frozen=True)
class _Undisturbed:
    """What was seen of the defense before any attack."""

    counts: ExampleCounts
    unsuppressed: Sequence[BaseExample]
    effects: SideEffects
    ringing: Rate | None


def _facts(
    setting: Setting,
    seen: _Undisturbed,
    scoring: Cost,
    chunks: Mapping[str, Sequence[Written]],
) -> Facts:
    spec, defense, target = setting.spec, setting.defense, setting.target
    every = [chunk for of_member in chunks.values() for chunk in of_member]
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
        examples=seen.counts,
        unsuppressed=tuple(seen.unsuppressed),
        perturbation=PerturbationKind(
            kind="several" if setting.mixed else setting.attack.space,
            length=setting.attack.length or None,
        ),
        members=tuple(chunks),
        member_flops=tuple(sum(c.attacking.flops for c in part) for part in chunks.values()),
        side_effects=seen.effects,
        stated_false_alarms=defense.false_alarms,
        false_alarms=seen.ringing,
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


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Work added up; of the memory in use the most."""
    summed = ("forward", "backward", "token_layers", "flops", "seconds")
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return Cost(
        **{name: sum(getattr(cost, name) for cost in costs) for name in summed},
        peak_bytes=max(peaks, default=None),
    )
