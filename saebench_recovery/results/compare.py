"""Runs side by side on the flips that all of them attacked, and where they were not on equal terms.

Each run is set beside the first one, in paired differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import Field, TypeAdapter

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.notebook import Shown
from saebench_recovery.base.uncollected import uncollected
from saebench_recovery.results import circumstances
from saebench_recovery.results.named_run import NamedRun, read_runs
from saebench_recovery.results.paired import PairedDifference, paired_differences
from saebench_recovery.results.task_run import TaskRun, names
from saebench_recovery.results.verdict import verdict
from saebench_recovery.schema import Count, Finite, Mean, Record, Stored, Summary
from saebench_recovery.scoring import measures, readings, statistics
from saebench_recovery.scoring.measures import Measure
from saebench_recovery.scoring.statistics import Values

SAME_COST = 1.1  # a ratio of FLOPs below this is called equal


class ComparedRun(Stored):
    """One run on the common flips."""

    name: str = Field(description="defense against attack, with settings that differ")
    identity: str
    valid: Count = Field(description="flips that it scored, common or not")
    measures: dict[str, Summary] = Field(description="see `scoring.measures`")
    drift: Mean | None = Field(
        description="relative, of each flip's worst scope; null where flops are matched"
    )
    flops: Mean = Field(description="spent by the search on a flip")
    flags: tuple[str, ...]


class Comparison(Stored):
    """All runs on one task."""

    task: str
    flips: Count = Field(description="attacked by every run")
    clusters: Count = Field(description="source items among them")
    flops: Finite | None = Field(description="at which recovery is read; null: at the end")
    runs: tuple[ComparedRun, ...]
    differences: tuple[PairedDifference, ...]
    unequal: tuple[str, ...] = Field(description="in what the runs were not on equal footing")
    verdicts: tuple[str, ...] = Field(description="a line for every run but the first")


class Comparisons(tuple[Comparison, ...], Shown):
    """Runs beside each other: a `Comparison` for each task, all as tables in a notebook."""

    __slots__ = ()


@uncollected()
def compare(
    runs: Sequence[str | Path | NamedRun],
    *,
    baseline: str | None = None,
    match_flops: bool = False,
) -> Comparisons:
    """Compare two or more stored runs on each task that all of them have.

    Every other run is set beside the first one, on the valid flips that all of them attacked, in
    paired differences whose intervals and p-values respect source items. Terms in which the runs
    differ are named. This needs no model: what is stored suffices.

    Args:
        runs: their folders, `<out>/<identity>`, or their `result.json`. Written `"NAME=FOLDER"`,
            a run is called by that name; else by its defense and attack.
        baseline: the run that the others are set beside: its own name, or the beginning of its
            identity. By default the first.
        match_flops: let a recovery count only if the search reached it before it had spent, on
            that flip, as many FLOPs as the cheapest of the runs spent at most. Figures that are
            known only for the end of a search are left out then.

    Returns:
        For each task: rates and means with 95 % intervals, norms in the runs' budget unit, drift
        relative, cost in FLOPs on a flip, paired differences, and a verdict in words.

    Raises:
        UserError: fewer than two runs, one that cannot be read, no task or flip in common, or no
            such baseline.

    Example:
        >>> found = compare(["mine=runs/0123456789abcdef", "gcg=runs/fedcba9876543210"])
        >>> for comparison in found:
        ...     print(comparison.task, *comparison.verdicts, sep="; ")
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two or more runs")
    named = [NamedRun.of(run) for run in runs]
    by_task = read_runs(named, baseline)
    tasks = [task for task in by_task[0] if all(task in of_run for of_run in by_task)]
    if not tasks:
        each = "; ".join(", ".join(of_run) for of_run in by_task)
        raise UserError(f"the runs have no task in common; they have: {each}")
    return Comparisons(
        _compared([of_run[task] for of_run in by_task], match_flops=match_flops) for task in tasks
    )


def as_json(comparisons: Sequence[Comparison]) -> str:
    """A JSON list of them."""
    adapter = TypeAdapter(tuple[Comparison, ...])
    return adapter.dump_json(tuple(comparisons), indent=1).decode()


@dataclass(frozen=True)
class _CommonFlips:
    """One run's records of the flips that all runs attacked, read at `flops` or at the end."""

    run: TaskRun
    records: Sequence[Record]
    flops: float | None

    @cached_property
    def values(self) -> dict[str, Values]:
        """Of every measure, and the drift, each flip's own value.

        Where flops are matched, only of what is known for the moment at which they were spent.
        """
        if self.flops is not None:
            return {m.name: self._of(m) for m in measures.MEASURES if m.needs_recovery}
        return {
            **{measure.name: self._of(measure) for measure in measures.MEASURES},
            "drift": [_worst_drift(record) for record in self.records],
        }

    def _of(self, measure: Measure) -> Values:
        values = readings.values(measure, self.records, self.run.row.perturbation)
        if self.flops is None or not measure.needs_recovery:
            return values
        return [
            None if value is None else bool(value) and readings.recovered_by(record, self.flops)
            for value, record in zip(values, self.records, strict=True)
        ]

    def spent(self) -> list[float]:
        limit = float("inf") if self.flops is None else self.flops
        return [min(record.flops, limit) for record in self.records]


def _compared(runs: Sequence[TaskRun], *, match_flops: bool) -> Comparison:
    task = runs[0].row.task
    common = [id for id in runs[0].flips if all(id in run.flips for run in runs)]
    if not common:
        raise UserError(f"task {task!r}: the runs have no valid flip in common")
    records = [[run.flips[id] for id in common] for run in runs]
    most = [max(record.flops for record in of_run) for of_run in records]
    # An attack without a search spends nothing, and is what it is at any cost.
    limit = min((flops for flops in most if flops), default=None) if match_flops else None
    flips = [_CommonFlips(*pair, limit) for pair in zip(runs, records, strict=True)]
    compared = _runs_on(flips, names(runs))
    differences = _differences(flips, [run.name for run in compared])
    unequal = [*circumstances.differences(runs), *_other_flips(compared, len(common))]
    costs = _unequal_costs(compared)
    of_run = {run.name: list[PairedDifference]() for run in compared}
    for pair in differences:
        of_run[pair.run].append(pair)
    in_what = [line.partition(": ")[0] for line in unequal]
    return Comparison(
        task=task,
        flips=len(common),
        clusters=len({record.cluster or record.id for record in records[0]}),
        flops=limit,
        runs=tuple(compared),
        differences=tuple(differences),
        unequal=(*unequal, *costs),
        verdicts=tuple(
            verdict(
                compared[0].name,
                run.name,
                of_run[run.name],
                _cost(compared[0], run, limit),
                in_what,
            )
            for run in compared[1:]
        ),
    )


def _runs_on(flips: Sequence[_CommonFlips], names: Sequence[str]) -> list[ComparedRun]:
    values, clusters = [own.values for own in flips], _clusters(flips[0])
    summed = {
        measure.name: readings.summaries(measure, [v[measure.name] for v in values], clusters)
        for measure in measures.MEASURES
        if measure.name in values[0]
    }
    drift: Sequence[Mean | None] = [None] * len(flips)
    if "drift" in values[0]:
        drift = statistics.means([v["drift"] for v in values], clusters)
    flops = statistics.means([own.spent() for own in flips], clusters)
    return [
        ComparedRun(
            name=name,
            identity=own.run.run.identity,
            valid=len(own.run.flips),
            measures={measure: of_runs[r] for measure, of_runs in summed.items()},
            drift=drift[r],
            flops=flops[r],
            flags=own.run.row.flag_names,
        )
        for r, (own, name) in enumerate(zip(flips, names, strict=True))
    ]


def _differences(flips: Sequence[_CommonFlips], names: Sequence[str]) -> list[PairedDifference]:
    """Every run beside the first one, on every measure that means the same in all."""
    clusters = _clusters(flips[0])
    first, *others = [own.values for own in flips]
    kinds = {own.run.row.perturbation.kind for own in flips}
    mixed = {m.name for m in measures.MEASURES if m.per_space and len(kinds) > 1}
    return [
        difference
        for measure in first
        if measure not in mixed
        for difference in paired_differences(
            measure, first[measure], names[1:], [values[measure] for values in others], clusters
        )
    ]


def _clusters(flips: _CommonFlips) -> list[str]:
    return [record.cluster for record in flips.records]


def _worst_drift(record: Record) -> float | None:
    """The largest relative drift of any scope; None where it is undefined in all."""
    relative = (metrics.get("relative_l2") for metrics in record.drift.values())
    return max((value for value in relative if value is not None), default=None)


def _other_flips(runs: Sequence[ComparedRun], common: int) -> list[str]:
    """A line if a run attacked flips that another did not."""
    if all(run.valid == common for run in runs):
        return []
    counts = " | ".join(str(run.valid) for run in runs)
    return [f"valid flips: {counts}; compared on the {common} in common"]


def _unequal_costs(runs: Sequence[ComparedRun]) -> list[str]:
    """A line if a run spent more on a flip than another."""
    if _alike(runs):
        return []
    each = " | ".join(f"{_spent(run):.2g}" for run in runs)
    return [f"FLOPs that the search spent on a flip: {each}"]


def _cost(first: ComparedRun, this: ComparedRun, limit: float | None) -> str:
    """How two runs were matched in what they spent, in words."""
    if limit is not None:
        return f"at {limit:.2g} FLOPs on each flip"
    if _alike([first, this]):
        return "at equal cost"
    return f"at unequal cost ({_spent(this):.2g} and {_spent(first):.2g} FLOPs on a flip)"


def _alike(runs: Sequence[ComparedRun]) -> bool:
    spent = [_spent(run) for run in runs]
    return max(spent) <= SAME_COST * min(spent)


def _spent(run: ComparedRun) -> float:
    return run.flops.mean or 0.0
