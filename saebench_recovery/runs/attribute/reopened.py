"""A stored run, ready to be replayed: its tasks prepared, its defenses fitted, its flips found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Perturbation, ResidualDelta
from saebench_recovery.results.consistency import StoredRun, read_consistent
from saebench_recovery.results.store import STATE
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.verify.evidence import read_flips, unlogged
from saebench_recovery.runs.verify.flips import settings_of
from saebench_recovery.runs.verify.identity import planned
from saebench_recovery.runs.verify.report import Findings
from saebench_recovery.schema import Facts, Record
from saebench_recovery.scoring.fit import fit, fit_task
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target

NEEDED = ("headline", "headline_wrong")


@dataclass(frozen=True)
class Recovered:
    """The recovered flips of one chunk: records, and their rows of each part of the evidence."""

    setting: Setting
    records: tuple[Record, ...]
    parts: dict[str, Perturbation]


def stored_run(path: Path) -> tuple[StoredRun, Plan]:
    """What is stored, and the plan that it is of.

    Raises:
        UserError: it is incomplete, does not fit together, or cannot be planned here.
    """
    result, stored = read_consistent(path)
    if stored is None:
        folder = path if path.is_dir() else path.parent
        raise UserError(f"{str(folder)!r} has no {STATE}: without evidence there is no delta")
    findings = Findings()
    plan = planned(result, findings)
    if plan is None:
        raise UserError(findings.unchecked[-1].line)
    return stored, plan


def loaded(plan: Plan) -> Target:
    spec = plan.spec
    return load_target(spec.target, dtype=spec.dtype, force_sae=spec.force_sae)


def recovered(
    target: Target, plan: Plan, stored: StoredRun, task: str, most: int | None
) -> Iterator[Recovered]:
    """The first `most` recovered flips of a task, under its fitted defense.

    Raises:
        UserError: evidence is missing or broken, or the fit finds other latents than the run did.
    """
    matchup, facts = plan.matchups[task], stored.facts[task]
    _fit(Setting(target, matchup.task, matchup.defense, matchup.attack, plan.spec), facts)
    settings = settings_of(target, matchup, plan.spec, facts)
    findings, left = Findings(), most
    unlogged(stored, findings)
    for number in range(len(stored.chunks)):
        flips = read_flips(stored, number, findings)
        if flips is None or flips.chunk.task != task or (left is not None and left <= 0):
            continue
        index = [e for e, record in enumerate(flips.records) if record.measures["recovery"]][:left]
        if not index or not isinstance(flips.parts["headline"], ResidualDelta):
            continue
        if left is not None:
            left -= len(index)
        setting = settings.get(flips.chunk.attack)
        if setting is None:
            raise UserError(f"deltas are stored of {flips.chunk.attack!r}, no attack of this run")
        rows = torch.tensor(index)
        yield Recovered(
            setting,
            tuple(flips.records[e] for e in index),
            {name: part.rows(rows) for name, part in flips.parts.items()},
        )
    lines = [*(m.line for m in findings.mismatches), *(u.line for u in findings.unchecked)]
    if lines:
        raise UserError(f"the evidence cannot be read: {lines[0]}")


def _fit(setting: Setting, facts: Facts) -> None:
    task, defense = setting.task, setting.defense
    fit_task(setting)
    fit(setting)
    found = {str(site): chosen for site, chosen in defense.features.items()}
    if found != facts.features:
        raise UserError(
            f"{defense.title} fitted here defends other latents of {task.label!r} than in the run; "
            "`saebench verify` says what else differs"
        )
