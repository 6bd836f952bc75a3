"""The facts of a run, found again: tasks prepared, defense fitted, valid flips counted.

All but the search is done once more by the engine that scores, on the stored chunks. The fitted
task and defense are then what the reference engine replays under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import silent
from saebench_recovery.results.consistency import COUNTED, StoredRun
from saebench_recovery.runs.plan import Matchup
from saebench_recovery.runs.verify.identity import same_harness
from saebench_recovery.runs.verify.report import Findings, Place
from saebench_recovery.scoring.evaluate import attacked
from saebench_recovery.scoring.journal import Chunk, Written
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.undisturbed import Undisturbed, undisturbed
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target

FLOOR = 1e-6  # absolute, of a fact that is a number


@dataclass(frozen=True)
class StoredChunks:
    """The journal of a stored run, which takes nothing new."""

    stored: StoredRun

    def written(self, task: str, attack: str) -> Sequence[Written]:
        return [
            Written(records, chunk.attacking, chunk.scoring)
            for chunk, records in self.stored.chunks
            if (chunk.task, chunk.attack) == (task, attack)
        ]

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        ids = ", ".join(record.id for record in chunk.records)
        raise UserError(f"{task} has valid flips that are not stored: {ids}")

    def failure(self, task: str, attack: str) -> str:
        facts = self.stored.facts.get(task)
        return "" if facts is None else facts.failures.get(attack, "")

    def fail(self, task: str, attack: str, line: str) -> None:
        raise UserError(f"{task} under {attack}: {line}")


def refitted(
    target: Target, label: str, matchup: Matchup, stored: StoredRun, findings: Findings
) -> Undisturbed | None:
    """Fit and count again, and hold the stored facts to that; None if it does not come through."""
    place = Place(findings, label)
    spec = RunSpec.stored(stored.result.spec)
    try:
        setting = Setting(target, matchup.task, matchup.defense, matchup.attack, spec)
        seen = undisturbed(setting, silent)
        found = attacked(seen, matchup.attack, spec, StoredChunks(stored), silent)
    except UserError as error:
        place.same("valid flips", "as the records are", str(error))
        return None
    facts = stored.facts.get(label)
    if facts is None:
        place.same("run.json facts", None, label)
        return seen
    skipped = {"compute"}
    pairs = [flat(f.model_dump(mode="json", exclude=skipped)) for f in (facts, found)]
    for name in dict.fromkeys([*pairs[0], *pairs[1]]):
        place.close(f"facts.{name}", pairs[0].get(name), pairs[1].get(name), FLOOR)
    # Another version may take other passes to the same figures, and what the search learned beside
    # its chunks depends on how many flips the memory holds.
    comparable = same_harness(stored.result) and not facts.examples.learned
    for role in ("attack", "scoring") if comparable else ():
        costs = [getattr(f.compute, role) for f in (facts, found)]
        for name in COUNTED:
            values = [getattr(cost, name) for cost in costs]
            place.close(f"facts.compute.{role}.{name}", *values)
    return seen


def flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings and lists, by their place."""
    if isinstance(nested, Mapping):
        pairs: Any = nested.items()
    elif isinstance(nested, list | tuple):
        pairs = enumerate(nested)
    else:
        return {prefix: nested}
    leaves: dict[str, Any] = {}
    for name, value in pairs:
        leaves |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return leaves
