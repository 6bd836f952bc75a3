"""Runs side by side on the flips that all of them attacked, and where they were not on equal terms.

Each run is set beside the first one. Differences are paired, flip by flip: the interval resamples
source items, and the p-value is that of McNemar's exact test (for drift, of the sign test, which is
the same on pairs that differ); it takes flips for independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from scipy.stats import binomtest

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.hashing import hash_text
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.store import read_examples, read_result
from saebench_recovery.schema import (
    Count,
    ExampleRow,
    Finite,
    Mean,
    Rate,
    Record,
    Row,
    RunResult,
    Share,
)
from saebench_recovery.scoring import statistics

SAME_COST = 1.1  # a ratio of FLOPs below this is called equal
LONG = 40  # characters of a value above which only its hash is shown


class Side(Record):
    """One run on the common flips."""

    name: str = Field(description="defense against attack, with settings that differ")
    identity: str
    valid: Count = Field(description="flips that it scored, common or not")
    recovery: Rate
    constrained: Rate
    drift: Mean = Field(description="relative, of each flip's worst scope")
    norm: Mean
    flops: Mean = Field(description="spent by the search on a flip")
    flags: tuple[str, ...]


class Pair(Record):
    """A run beside the first one, on one measure."""

    measure: str
    name: str
    difference: Finite = Field(description="of the means, this run's less the first one's")
    low: Finite | None
    high: Finite | None
    first_larger: Count = Field(description="flips on which the first run's is larger")
    this_larger: Count = Field(description="of a rate: flips that this run alone recovered")
    p_value: Share = Field(
        description="exact sign test, two-sided; on a rate that is McNemar's exact test"
    )


class Comparison(Record):
    """All runs on one task."""

    task: str
    flips: Count = Field(description="attacked by every run")
    flops: Finite | None = Field(description="at which recovery is read; null: at the end")
    sides: tuple[Side, ...]
    pairs: tuple[Pair, ...]
    unequal: tuple[str, ...] = Field(description="in what the runs were not on equal footing")


@dataclass(frozen=True)
class _Scored:
    """A run's row of a task and its flips by id."""

    run: RunResult
    row: Row
    flips: Mapping[str, ExampleRow]

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.run.spec["resolved"][self.row.task]
        return found


def compare(runs: Sequence[Path], *, match_flops: bool = False) -> list[Comparison]:
    """Compare two or more runs on each task that all of them have.

    With `match_flops`, recovery counts only as far as the search had come when it had spent, on
    each flip, what the cheapest of the runs spent at most.

    Raises:
        UserError: fewer than two runs, one that cannot be read, or no task or flip in common.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two or more runs")
    found = [(read_result(r), read_examples(r if r.is_dir() else r.parent)) for r in runs]
    tasks = [
        row.task
        for row in found[0][0].rows
        if all(row.task in {other.task for other in run.rows} for run, _ in found)
    ]
    if not tasks:
        each = "; ".join(", ".join(row.task for row in run.rows) for run, _ in found)
        raise UserError(f"the runs have no task in common; they have: {each}")
    return [_compared([_of(run, e, task) for run, e in found], match_flops) for task in tasks]


def _of(run: RunResult, examples: Sequence[ExampleRow], task: str) -> _Scored:
    row = next(row for row in run.rows if row.task == task)
    return _Scored(run, row, {e.id: e for e in examples if e.task == task})


def _compared(runs: Sequence[_Scored], match_flops: bool) -> Comparison:
    task = runs[0].row.task
    common = [id for id in runs[0].flips if all(id in run.flips for run in runs)]
    if not common:
        raise UserError(f"task {task!r}: the runs have no valid flip in common")
    flips = [[run.flips[id] for id in common] for run in runs]
    most = [max(e.flops for e in own) for own in flips]
    # An attack without a search spends nothing, and is what it is at any cost.
    limit = min((flops for flops in most if flops), default=None) if match_flops else None
    names = _names(runs)
    clusters = [e.cluster for e in flips[0]]
    recovered = [[_recovered(e, limit) for e in own] for own in flips]
    constrained = [[_recovered(e, limit) and e.constrained for e in own] for own in flips]
    drift = [[_worst_drift(e) for e in own] for own in flips]
    measures: dict[str, list[list[Any]]] = {
        "recovery": recovered,
        "constrained": constrained,
        "drift": drift,
    }
    pairs = [
        _pair(measure, names[i], shown[0], shown[i], clusters)
        for measure, shown in measures.items()
        for i in range(1, len(runs))
    ]
    sides = [
        Side(
            name=names[i],
            identity=run.run.identity,
            valid=len(run.flips),
            recovery=statistics.rate(recovered[i], clusters),
            constrained=statistics.rate(constrained[i], clusters),
            drift=statistics.mean(drift[i], clusters),
            norm=statistics.mean([e.relative_norm for e in flips[i]], clusters),
            flops=statistics.mean([_cost(e, limit) for e in flips[i]], clusters),
            flags=run.row.flags,
        )
        for i, run in enumerate(runs)
    ]
    return Comparison(
        task=task,
        flips=len(common),
        flops=limit,
        sides=tuple(sides),
        pairs=tuple(pair for pair in pairs if pair is not None),
        unequal=tuple(_unequal(runs, sides, len(common))),
    )


def _recovered(example: ExampleRow, limit: float | None) -> bool:
    reached = math.inf if example.flops_recovers is None else example.flops_recovers
    until = math.inf if limit is None else limit
    return statistics.found_after(until, example.recovered, reached, example.flops)


def _cost(example: ExampleRow, limit: float | None) -> float:
    return example.flops if limit is None else min(example.flops, limit)


def _worst_drift(example: ExampleRow) -> float | None:
    """The largest relative drift of any scope; None where it is undefined in all."""
    found = (metrics.get("relative_l2") for metrics in example.drift.values())
    return max((value for value in found if value is not None), default=None)


def _pair(
    measure: str,
    name: str,
    first: Sequence[float | None],
    this: Sequence[float | None],
    clusters: Sequence[str],
) -> Pair | None:
    """Two runs on the flips on which the measure is defined in both; None if it never is."""
    gaps = [
        None if a is None or b is None else float(b) - float(a)
        for a, b in zip(first, this, strict=True)
    ]
    gap = statistics.mean(gaps, clusters)
    if gap.mean is None:
        return None
    falls, rises = sum((g or 0) < 0 for g in gaps), sum((g or 0) > 0 for g in gaps)
    return Pair(
        measure=measure,
        name=name,
        difference=gap.mean,
        low=gap.low,
        high=gap.high,
        first_larger=falls,
        this_larger=rises,
        p_value=float(binomtest(rises, rises + falls).pvalue) if rises + falls else 1.0,
    )


# --- what the runs are, and in what they differ -----------------------------------------------


def _names(runs: Sequence[_Scored]) -> list[str]:
    """Defense against attack; and settings, where two runs would otherwise be called the same."""
    short = [f"{run.row.defense} against {run.row.attack}" for run in runs]
    if len(set(short)) == len(short):
        return short
    return [
        " ".join([name, *_differing(run, runs), f"({run.run.identity[:8]})"])
        for name, run in zip(short, runs, strict=True)
    ]


def _differing(run: _Scored, runs: Sequence[_Scored]) -> list[str]:
    """The run's own value of every setting of defense and attack in which any two runs differ."""
    return [
        f"{key}={canonical_json(value)}"
        for kind in ("defense", "attack")
        for key, value in run.config[kind].items()
        if any(other.config[kind].get(key, value) != value for other in runs)
    ]


def _unequal(runs: Sequence[_Scored], sides: Sequence[Side], common: int) -> list[str]:
    """A line for everything in which the runs were not on equal footing."""
    every = [_circumstances(run) for run in runs]
    lines = []
    for name in dict.fromkeys(name for found in every for name in found):
        shown = [_shown(found[name]) for found in every if name in found]
        if len(set(shown)) > 1:
            lines.append(f"{name}: {' | '.join(shown)}")
    if any(side.valid != common for side in sides):
        counts = " | ".join(str(side.valid) for side in sides)
        lines.append(f"valid flips: {counts}; compared on the {common} in common")
    spent = [side.flops.mean or 0.0 for side in sides]
    if max(spent) > SAME_COST * min(spent):
        each = " | ".join(f"{value:.2g}" for value in spent)
        lines.append(f"FLOPs that the search spent on a flip: {each}")
    return lines


def _circumstances(run: _Scored) -> dict[str, Any]:
    """Everything but the attack itself that should be the same in all runs, by name."""
    spec, row, made = run.run.spec, run.row, run.run.provenance
    said = ("target", "threat_model", "budget", "budget_unit", "seed", "limits", "flops")
    aims = ("sites", "positions", "objective", "shared")
    return _flat(
        {
            **{name: spec.get(name) for name in said},
            "evaluation examples": row.examples.n,
            "defense": {
                "name": row.defense,
                "hook point": run.config["site"],
                **run.config["defense"],
                "latents defended": canonical_json(row.features),
            },
            "task": run.config["task"],
            "attack": {k: v for k, v in run.config["attack"].items() if k in aims},
            "device": made.device,
            "dtype": made.dtype,
            "versions": made.packages,
            "files of the target": made.target_hash,
            "commit of": made.commits,
            "data": made.data_hash,
            "code of the harness": spec.get("environment", {}).get("harness"),
        }
    )


def _flat(found: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, so that a difference is named by the setting that differs."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name} ")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _shown(value: Any) -> str:
    """A value as text; of a long one its hash, by which two can be told apart."""
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= LONG else hash_text(text)[:8]
