"""Cases and honest pairs as `saebench check` sees them, on the organism."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from saebench_recovery import registry
from saebench_recovery.base.catalogue import Kind
from saebench_recovery.interfaces import Task
from saebench_recovery.runs.check import examine_row
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.schema import Finding
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target

FOLDER = Path(__file__).parent
LIMIT = 64
STEPS = 12  # of the searches that run
SITE = "blocks.2.hook_resid_post"
# Tasks of honest pairs: what one has laid out and fitted serves all defenses.
_FITTED: dict[str, Task] = {}


@cache
def organism() -> Target:
    for name in ("defenses", "tasks", "attacks", "searches"):
        registry.load_plugin_file(FOLDER / f"{name}.py")
    return load_target("organism", "cpu", dtype="auto", force_sae=False)


def examined(
    defense: str = "clamp", attack: str = "unconstrained", task: str = "ioi"
) -> tuple[Finding, ...]:
    """What is found for the first row of a run."""
    target = organism()
    own_site = {} if task in target.preset.tasks else {"site": SITE}
    spec = RunSpec(
        defense=defense, attack=attack, tasks=(task,), limit=LIMIT, defense_config=own_site
    )
    matchup = next(iter(Plan.of(check_names(spec)).matchups.values()))
    named: dict[Kind, str] = {"defense": defense, "attack": attack, "task": task}
    if all(registry.is_built_in(kind, name) for kind, name in named.items()):
        matchup = replace(matchup, task=_FITTED.setdefault(task, matchup.task))
    return examine_row(target, matchup, spec)


def of_case(kind: Kind, name: str) -> tuple[Finding, ...]:
    """What is found for a case."""
    return examined(**{kind: name})
