"""The checks of `saebench check`: plugins are loaded and fitted, and nothing is scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.protocols.apply import fill
from saebench_recovery.results.report.notebook import table
from saebench_recovery.runs.plan import Matchup, Plan, check_names
from saebench_recovery.runs.run import requested
from saebench_recovery.schema import Finding
from saebench_recovery.scoring.check.attack_contract import check_attack
from saebench_recovery.scoring.check.catalogue import refusal
from saebench_recovery.scoring.check.other_files import other_files
from saebench_recovery.scoring.check.preflight import preflight
from saebench_recovery.scoring.check.sampled import spread
from saebench_recovery.scoring.fit import fit, fit_task
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.valid_flips import valid_flips
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target

TRIED = 16  # evaluation prompts among which a flip for the attack is looked for


HEADS = ("row", "level", "finding", "what was seen", "what to do")


class Checked(dict[str, tuple[Finding, ...]]):
    """What was found, by the label of a row; a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = [
            [label, one.level, one.name, one.sentence, one.remedy]
            for label, findings in self.items()
            for one in findings
        ]
        clean = [[label, "", "nothing found", "", ""] for label, of in self.items() if not of]
        return table(HEADS, [*rows, *clean])


def check(*names: Any, plugins: Sequence[str | Path] = (), **options: Any) -> Checked:
    """Check a defense, an attack and tasks, as every run does before it scores anything.

    Whether the defense is a function of its input with an honest gradient, which latents it edits,
    whether the attack returns what is admitted, whether the task's splits share content.

    Args:
        names: target, defense, attack and tasks, in this order; see `run`.
        plugins: files to import first.
        options: the fields of a `RunSpec`; see `run`.

    Returns:
        For each row (a task, or one of its targets) the findings, none where all is well. An
        `error` keeps a row from being scored, `invalid` from being ranked.

    Raises:
        UserError: unknown names or settings.

    Example:
        >>> check(defense="clamp", tasks=["ioi"])
        {'ioi': ()}
    """
    return examine(requested(names, options, plugins))


def examine(spec: RunSpec) -> Checked:
    """Check what a spec names; see `check`."""
    plan = Plan.of(check_names(fill(spec)))
    matchups, spec = plan.matchups, plan.spec
    target = load_target(spec.target, spec.device, dtype=spec.dtype, force_sae=spec.force_sae)
    return Checked(
        {label: examine_row(target, matchup, spec) for label, matchup in matchups.items()}
    )


def examine_row(target: Target, matchup: Matchup, spec: RunSpec) -> tuple[Finding, ...]:
    """What is wrong with the plugins of one row."""
    task, defense = matchup.task, matchup.defense
    setting = Setting(target, task, defense, matchup.attack, spec)
    try:
        fit_task(setting)
        fit(setting)
        examples = list(task.examples(target, "evaluation"))[: spec.limit]
        found = list(preflight(setting, examples).findings)
        if all(one.level != "error" for one in found):
            _, flips = valid_flips(setting, spread(examples, TRIED))
            found += check_attack(setting, flips, try_built_in=True)
        found += other_files(task, defense, matchup.attack)
    except UserError as error:
        return (refusal(error),)
    return tuple(found)
