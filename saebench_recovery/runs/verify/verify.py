"""Whether a stored run holds: recomputed from its spec and its evidence by another engine.

Rule: whatever a row says can be recomputed from records and evidence by an engine that shares
nothing with the one that scored. What the run says of its cost in seconds, memory and FLOPs of
single flips is no such thing, and neither is the commit that made it.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress, silent
from saebench_recovery.base.reading import reason
from saebench_recovery.results.consistency import (
    StoredRun,
    read_beside,
)
from saebench_recovery.results.mismatch import Mismatch, differing
from saebench_recovery.results.published import (
    entries_in,
    entry_mismatches,
    is_entry,
    read_entry,
    run_of,
)
from saebench_recovery.results.store import RESULT, STATE, read_result
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.sharing import Sharing
from saebench_recovery.runs.verify.divide import recomputed
from saebench_recovery.runs.verify.identity import planned, same_harness
from saebench_recovery.runs.verify.recompute import Recomputation
from saebench_recovery.runs.verify.report import Findings, Verification
from saebench_recovery.runs.verify.search import drawn
from saebench_recovery.schema import RunResult
from saebench_recovery.scoring.aggregate import aggregate


def verify(
    path: str | Path,
    sample: int | None = None,
    *,
    seed: int | None = None,
    plugins: Sequence[str | Path] = (),
    jobs: int | None = 1,
    progress: Progress | None = None,
) -> Verification:
    """Hold a stored run to its spec and its evidence.

    Identity and hashes are recomputed from the stored spec and what is installed here, each row
    from its records, the facts by fitting again, and each flip's record by replaying its
    perturbations with the reference engine. Up to sixteen flips of each task are attacked once
    more, as an attack that did not search leaves nothing that a replay could find.

    Args:
        path: the run's folder or its `result.json`; or a published entry with its evidence beside
            it, whose one row is held to its run, and of which only that task is replayed.
        sample: how many flips of each task are replayed; None for all.
        seed: that draws the sample, and what is searched again. By default one that nobody can
            know before.
        plugins: files to import first, of which the run names a class.
        jobs: among how many processes tasks are divided, which changes nothing in the result. None
            is as many as there is work, cores and memory for; more than one need a main module
            that can be imported.
        progress: called with what is done, how much of it, and of how much in all.

    Returns:
        Every mismatch (task, example, field, what is stored, what was found), what could not be
        checked, and whether the run `holds`. Numbers may differ by 1e-4, relative.

    Raises:
        UserError: there is no complete run that can be read.

    Example:
        >>> found = verify("runs/0123456789abcdef", sample=4)
        >>> found.holds, [mismatch.line for mismatch in found.mismatches]
        (True, [])
    """
    for file in plugins:
        registry.load_plugin_file(file)
    findings = Findings()
    result, stored, task = _compared(Path(path), findings)
    scope = _Scope(task, sample, secrets.randbelow(2**32) if seed is None else seed)
    told, sharing = progress or silent, Sharing(jobs, plugins)
    count, searched = _recomputed(stored, scope, findings, sharing, told) if stored else (0, 0)
    return findings.verification(
        identity=result.identity,
        flips=count,
        searched=searched,
        stored_flips=_flips(stored, scope) if stored else 0,
        seed=scope.seed if searched or sample is not None else None,
    )


def hold_together(path: Path) -> Verification:
    """Hold a stored run or entry to what stands beside it: hashes, records and rows, no replay.

    Raises:
        UserError: there is no complete run that can be read.
    """
    findings = Findings()
    result, stored, task = _compared(path, findings)
    count = _flips(stored, _Scope(task, None, None)) if stored else 0
    return findings.verification(
        identity=result.identity, flips=0, searched=0, stored_flips=count, seed=None
    )


def runs_in(path: Path) -> list[Path]:
    """The run or entry at a path, or of a folder the entries, or the complete runs in its folders.

    Raises:
        UserError: there is none.
    """
    if path.is_file() or any((path / name).exists() for name in (RESULT, STATE)):
        return [path]
    found = entries_in(path) or sorted(file.parent for file in path.glob(f"*/{RESULT}"))
    if not found:
        raise UserError(f"no run at {str(path)!r}, and none in its folders")
    return found


@dataclass(frozen=True)
class _Scope:
    """What is fitted and replayed: one task or all (None), and a sample of the flips of each."""

    task: str | None
    sample: int | None
    seed: int | None

    def covers(self, task: str) -> bool:
        return self.task in (None, task)

    def chosen(self, plan: Plan, stored: StoredRun) -> dict[str, set[str]]:
        """Ids of flips by covered task, the same ones whatever else is verified."""
        return {
            task: self._drawn(task, _ids(stored, task))
            for task in plan.matchups
            if self.covers(task)
        }

    def searched(self, plan: Plan, stored: StoredRun) -> dict[str, set[str]]:
        """Ids of flips that are searched again, by covered task, drawn apart from the others."""
        return {
            task: drawn(_ids(stored, task), self.sample, f"{self.seed} search {task}")
            for task in plan.matchups
            if self.covers(task)
        }

    def _drawn(self, task: str, ids: set[str]) -> set[str]:
        if self.sample is None or self.sample >= len(ids):
            return ids
        return set(random.Random(f"{self.seed} {task}").sample(sorted(ids), self.sample))


def _ids(stored: StoredRun, task: str) -> set[str]:
    return {record.id for record in stored.records.get(task, [])}


def _compared(path: Path, findings: Findings) -> tuple[RunResult, StoredRun | None, str | None]:
    """A run, and what is stored of it where that can be read, held to each other.

    Of an entry, its task too.
    """
    published = read_entry(path) if is_entry(path) else None
    place = path if published is None else run_of(path, published)
    result = read_result(place)
    folder = place if place.is_dir() else place.parent
    if published is not None:
        same = same_harness(result)
        findings.add(entry_mismatches(path, published, same_version=same))
    stored, found = read_beside(result, folder)
    findings.add(found)
    if stored is not None:
        _check_rows(stored, findings)
    elif not (folder / STATE).exists():
        findings.could_not_check("records and evidence", f"{STATE} is missing")
    return result, stored, None if published is None else published.entry.row.task


def _flips(stored: StoredRun, scope: _Scope) -> int:
    return sum(len(records) for chunk, records in stored.chunks if scope.covers(chunk.task))


def _recomputed(
    stored: StoredRun, scope: _Scope, findings: Findings, sharing: Sharing, progress: Progress
) -> tuple[int, int]:
    """Fit again, replay flips and search again: how many flips of either."""
    plan = planned(stored.result, findings)
    if plan is None:
        return 0, 0
    chosen, again = scope.chosen(plan, stored), scope.searched(plan, stored)
    work = Recomputation(plan.fresh(), stored, chosen, again)
    return recomputed(work, sharing, findings, progress)


def _check_rows(stored: StoredRun, findings: Findings) -> None:
    """Each row is what its facts and records add up to, but for rounding."""
    for row in stored.result.rows:
        facts = stored.facts.get(row.task)
        if facts is None:
            continue
        try:
            found = aggregate(facts, stored.records.get(row.task, []))
        except UserError:
            continue  # it is among the findings already: a flip is stored twice
        except (ArithmeticError, ValueError) as error:  # such as rates above 1
            wrong = Mismatch(task=row.task, field="row", stored="one", found=reason(error))
            findings.add([wrong])
            continue
        findings.add(differing("row", row, found, task=row.task))
