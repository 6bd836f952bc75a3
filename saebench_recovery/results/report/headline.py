"""The dozen figures by which a run is read, in 80 columns; `table.py` has all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich import box
from rich.table import Table

from saebench_recovery.results.report.escape import terminal
from saebench_recovery.results.report.numbers import NONE, brief, mean_number
from saebench_recovery.results.summary import over_rows, worst_drift
from saebench_recovery.schema import Flag, Level, Row, RunResult

LEVELS: tuple[Level, ...] = (
    "invalid",
    "caution",
    "note",
)  # in the order in which flags are explained
MEASURES = {
    "recovery": "recovery",
    "faithful": "faithful",
    "injection": "wrong_target",
    "random direction": "random_direction",
}


def title(result: RunResult) -> str:
    """Who met whom, where."""
    spec = result.spec
    return f"{spec['defense']} against {spec['attack']} on {spec['target']}"


def terms(result: RunResult) -> Iterator[str]:
    """Under which terms the run was made, and what its verdicts mean."""
    spec = result.spec
    budget = f"budget {spec['budget']} ({spec['budget_unit']})"
    yield f"{spec['threat_model']}, {budget}, seed {spec['seed']}"
    for limits in {row.limits for row in result.rows}:
        yield f"constrained: drift <= {limits.drift:g}, decoded <= {limits.decode:g}"
        yield f"base-like: fidelity >= {limits.fidelity:g}"


def headline(heading: str, tasks: Mapping[str, Sequence[Row]]) -> Table:
    """A column for each task; of one with several targets, the mean over them."""
    table = Table(
        title=terminal(heading),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    table.add_column("", style="bold", no_wrap=True)
    columns = figures(tasks)
    for name in columns:
        table.add_column(terminal(name), justify="right", no_wrap=True)
    for line in by_label(columns):
        table.add_row(*line)
    return table


def figures(tasks: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, str]]:
    """The figures of each task by their labels, under the heading of its column."""
    return {
        name if len(rows) == 1 else f"{name}, {len(rows)} mean": _of_task(rows)
        for name, rows in tasks.items()
    }


def by_label(columns: Mapping[str, Mapping[str, str]]) -> Iterator[list[str]]:
    """The same, line by line: a label, and its figure of every task."""
    for label in next(iter(columns.values()), {}):
        yield [label, *(column[label] for column in columns.values())]


def _of_task(rows: Sequence[Row]) -> dict[str, str]:
    return {
        "valid flips": f"{sum(r.examples.valid for r in rows)} of "
        f"{sum(r.examples.base for r in rows)}",
        "under attack": brief(over_rows(rows, lambda r: r.under_attack)),
        **{
            label: brief(over_rows(rows, lambda r, n=name: r.measures.get(n)))  # type: ignore[misc]
            for label, name in MEASURES.items()
        },
        "worst drift": _drift(rows),
        "smallest norm": mean_number([r.curve.median_norm_recovers for r in rows], ".2g"),
        "... that injects": mean_number([r.curve.median_norm_injects for r in rows], ".2g"),
        "side effects": _side_effects(rows),
        "search": _cost(rows),
        "flags": _levels(rows),
    }


def _drift(rows: Sequence[Row]) -> str:
    """The largest, and on how many flips drift is defined, be it by pre-activations."""
    worst = worst_drift(*rows)
    if worst is None:
        return NONE
    defined = sum(max(d.preactivation_relative.n for d in row.drift.values()) for row in rows)
    return f"{worst[0]:.0e} n={defined}"


def _side_effects(rows: Sequence[Row]) -> str:
    effects = [row.side_effects for row in rows]
    kept, known = sum(e.retain_kept for e in effects), sum(e.retain_known for e in effects)
    kl = mean_number([e.kl for e in effects], ".2f").removeprefix("0")
    return f"{kept}/{known} KL {kl}"


def _cost(rows: Sequence[Row]) -> str:
    costs = [row.compute.attack for row in rows]
    return f"{sum(c.seconds for c in costs):.0f} s {sum(c.flops for c in costs):.0e} F"


def _levels(rows: Sequence[Row]) -> str:
    """How many flags there are of the worst level, by name, and how many beside them."""
    named = {flag.name: flag.level for row in rows for flag in row.flags}
    count = Counter(named.values())
    for level in LEVELS:
        if worst := count[level]:
            others = len(named) - worst
            return f"{worst} {level}" + (f" +{others}" if others else "")
    return "none"


def explained(tasks: Mapping[str, Sequence[Row]]) -> Iterable[tuple[Flag, list[str]]]:
    """A flag of each name and the tasks that it stands in, what is invalid first."""
    named: dict[str, Flag] = {}
    where: dict[str, list[str]] = {}
    for task, rows in tasks.items():
        for flag in (flag for row in rows for flag in row.flags):
            named.setdefault(flag.name, flag)
            if task not in where.setdefault(flag.name, []):
                where[flag.name].append(task)
    for flag in sorted(named.values(), key=lambda flag: (LEVELS.index(flag.level), flag.name)):
        yield flag, where[flag.name]
