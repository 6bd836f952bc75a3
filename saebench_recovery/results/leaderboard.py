"""Leaderboards: what complete runs say about defenses and attacks, one file per target and task.

Only what is comparable is ranked together: one target, threat model, budget, set of limits, and
the same task on as many examples. Attacks on weights rank apart from all others, and so do those
that perturb residuals at places of their own choice. Seeds, and the targets of one task (classes,
say), make one board.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.base.uncollected import uncollected
from saebench_recovery.results.entry import Entry, Scored, read_entries
from saebench_recovery.results.ranked import Pair, in_order, ranked
from saebench_recovery.results.standings import DefenseStanding
from saebench_recovery.results.summary import task_of
from saebench_recovery.schema import Count, Finite, Stored, Versioned
from saebench_recovery.spec import BudgetUnit, Limits, ThreatModel


class Group(Stored):
    """Runs that may be compared."""

    threat_model: ThreatModel
    budget: Finite
    budget_unit: BudgetUnit
    limits: Limits
    limit: Count | None = Field(description="of evaluation examples, for each target of the task")
    task_config: dict[str, Any]
    target_hash: str
    elsewhere: bool = Field(description="residuals are perturbed at places of the attack's choice")
    counted: tuple[str, ...] = Field(description="attacks whose worst case ranks")
    standard_suite: bool = Field(
        description="they are the standard suite; if not, the worst case is incomplete"
    )
    defenses: tuple[DefenseStanding, ...] = Field(
        description="the most robust first, and behind them what is not ranked"
    )
    pairs: tuple[Pair, ...] = Field(description="of ranked defenses")
    entries: tuple[Entry, ...]


class Leaderboard(Versioned):
    """`leaderboards/<target>-<task>.json`."""

    target: str
    task: str = Field(description="all its targets together")
    groups: tuple[Group, ...]


@uncollected()
def build(runs: Sequence[Path]) -> list[Leaderboard]:
    """Rank what stands in the folders of complete runs; their order does not matter.

    Raises:
        UserError: a run is partial or cannot be read, or there are two of one identity that differ.
    """
    every = _rows(runs)
    return [
        Leaderboard(
            target=of_task[0].row.target,
            task=task_of(of_task[0].row),
            groups=tuple(_group(comparable) for comparable in _grouped(of_task, _comparable)),
        )
        for of_task in _grouped(every, lambda s: [s.row.target, task_of(s.row)])
    ]


def _rows(runs: Iterable[Path]) -> list[Scored]:
    """The rows of all runs; one that is given twice counts once."""
    found: dict[tuple[str, str], tuple[Path, Scored]] = {}
    for run in runs:
        for scored in read_entries(run):
            identity, task = scored.entry.identity, scored.row.task
            first, known = found.setdefault((identity, task), (run, scored))
            if known is not scored and known != scored:
                raise UserError(
                    f"{str(first)!r} and {str(run)!r} are both run {identity} and differ in "
                    f"{task!r}: give only one of them"
                )
    return [scored for _, scored in found.values()]


def _comparable(scored: Scored) -> list[Any]:
    """What must agree before two rows are ranked together."""
    row, entry = scored.row, scored.entry
    return [
        row.threat_model,
        row.budget,
        row.budget_unit,
        row.limits.model_dump(),
        entry.limit,
        _task_config(entry),
        row.perturbation.of_weights,
        row.perturbation.elsewhere,
        entry.sources.get("task"),
        entry.provenance.target_hash,
    ]


def _task_config(entry: Entry) -> dict[str, Any]:
    """The task's settings, without the one that says which of its targets this is."""
    own = entry.row.task.partition("/")[2]
    return {k: v for k, v in entry.config["task"].items() if not own or v != own}


def _group(entries: Sequence[Scored]) -> Group:
    first = entries[0]
    defenses, pairs, counted = ranked(entries)
    return Group(
        threat_model=first.row.threat_model,
        budget=first.row.budget,
        budget_unit=first.row.budget_unit,
        limits=first.row.limits,
        limit=first.entry.limit,
        task_config=_task_config(first.entry),
        target_hash=first.entry.provenance.target_hash,
        elsewhere=first.row.perturbation.elsewhere,
        counted=counted,
        standard_suite=any(scored.entry.standard_suite for scored in entries),
        defenses=defenses,
        pairs=pairs,
        entries=in_order(entries),
    )


def _grouped(entries: Iterable[Scored], key: Callable[[Scored], Any]) -> list[list[Scored]]:
    """Entries with equal keys together; groups by key and entries by identity, always alike."""
    keyed = [(canonical_json(key(scored)), scored) for scored in entries]
    keyed.sort(key=lambda pair: (pair[0], pair[1].entry.identity))
    return [[scored for _, scored in alike] for _, alike in groupby(keyed, lambda pair: pair[0])]
