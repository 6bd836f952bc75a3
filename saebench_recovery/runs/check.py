"""The checks of `saebench check`: plugins are loaded and fitted, and nothing is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.protocols.apply import fill
from saebench_recovery.runs.plan import Matchup, Plan, check_names
from saebench_recovery.runs.run import requested
from saebench_recovery.schema import Finding
from saebench_recovery.scoring.check.attack_contract import check_attack
from saebench_recovery.scoring.check.catalogue import refusal
from saebench_recovery.scoring.check.preflight import preflight
from saebench_recovery.scoring.check.sampled import spread
from saebench_recovery.scoring.fit import fit
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.valid_flips import valid_flips
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target

TRIED = 16  # evaluation prompts among which a flip for the attack is looked for


def check(
    *names: Any, plugins: Sequence[str | Path] = (), **options: Any
) -> Mapping[str, tuple[Finding, ...]]:
    """What is wrong with a defense, an attack and tasks, by the label of a row.

    The arguments are those of `run`, less what concerns its result.

    Raises:
        UserError: unknown names or settings.
    """
    return examine(requested(names, options, plugins))


def examine(spec: RunSpec) -> Mapping[str, tuple[Finding, ...]]:
    """Check what a spec names; see `check`."""
    plan = Plan.of(check_names(fill(spec)))
    matchups, spec = plan.matchups, plan.spec
    target = load_target(spec.target, spec.device, dtype=spec.dtype, force_sae=spec.force_sae)
    return {label: examine_row(target, matchup, spec) for label, matchup in matchups.items()}


def examine_row(target: Target, matchup: Matchup, spec: RunSpec) -> tuple[Finding, ...]:
    """What is wrong with the plugins of one row."""
    task, defense = matchup.task, matchup.defense
    setting = Setting(target, task, defense, matchup.attack, spec)
    try:
        task.fit(target, target.site_for(task.name, defense.config.site))
        fit(setting)
        examples = list(task.examples(target, "evaluation"))[: spec.limit]
        found = list(preflight(setting, examples).findings)
        if all(one.level != "error" for one in found):
            _, flips = valid_flips(setting, spread(examples, TRIED))
            found += check_attack(setting, flips, try_built_in=True)
    except UserError as error:
        return (refusal(error),)
    return tuple(found)
