"""A run as a table: one column per task, then what its flags mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from saebench_recovery.results.report.summary import (
    Interval,
    by_task,
    interval,
    mean_number,
    over_targets,
    worst_drift,
)
from saebench_recovery.schema import Cost, Mean, Rate, Row, RunResult

NONE = "-"


def print_result(result: RunResult) -> None:
    """Print the rows of a run, and an explanation of each flag that stands in them."""
    console = Console()
    spec = result.spec
    table = Table(
        title=f"{spec['defense']} against {spec['attack']} on {spec['target']}",
        caption=f"{spec['threat_model']}, budget {spec['budget']} ({spec['budget_unit']}), "
        f"seed {spec['seed']}",
    )
    table.add_column("", style="bold")
    tasks = by_task(result.rows)
    for name, rows in tasks.items():
        table.add_column(
            name if len(rows) == 1 else f"{name}, mean of {len(rows)}", justify="right"
        )
    columns = [_measures(rows) for rows in tasks.values()]
    # A task may have figures of its own, so columns need not have all rows.
    for measure in dict.fromkeys(name for column in columns for name in column):
        table.add_row(measure, *(column.get(measure, NONE) for column in columns))
    console.print(table)
    for name, rows in tasks.items():
        if len(rows) > 1:
            console.print(_targets(name, rows))
    if result.status == "partial":
        console.print("partial: repeat the command to run the tasks that are missing")
    if flags := sorted({flag for row in result.rows for flag in row.flags}):
        from saebench_recovery.scoring.flags import MEANINGS  # imports torch

        for flag in flags:
            meaning = MEANINGS.get(flag, "unknown to this version")
            console.print(f"[bold]{flag}[/bold]: {meaning}", highlight=False)
    if spec["protocol"] is not None:
        from saebench_recovery.results.report.published_table import print_comparison

        print_comparison(console, result)


def _measures(rows: Sequence[Row]) -> dict[str, str]:
    """The measures of a task; of one with several targets, the mean over them."""
    limits = rows[0].constrained.limits

    def over(of: Callable[[Row], Rate | Mean]) -> str:
        return _with_interval(over_targets(map(of, rows)))

    def number(of: Callable[[Row], float | None]) -> str:
        return _number(mean_number([of(row) for row in rows]))

    return {
        "valid flips / base / examples": " / ".join(
            str(sum(getattr(row.examples, name) for row in rows)) for name in ("valid", "base", "n")
        ),
        "recovery": over(lambda r: r.recovery),
        f"constrained (drift <= {limits.drift:g}, decoded <= {limits.decode:g})": over(
            lambda r: r.constrained
        ),
        f"base-like (fidelity >= {limits.fidelity:g})": over(lambda r: r.base_like),
        "fidelity to clean": over(lambda r: r.fidelity),
        **{
            n.replace("_", " "): over(lambda r, n=n: r.figures[n])  # type: ignore[misc]
            for n in _shared(r.figures for r in rows)
        },
        "control: wrong target": over(lambda r: r.controls.wrong_target),
        "control: random direction": over(lambda r: r.controls.random_direction),
        "control: nothing": over(lambda r: r.controls.nothing),
        "constraint": "\n".join(
            dict.fromkeys(f"{r.constraint.kind}, rank {r.constraint.rank}" for r in rows)
        ),
        **_detection(rows),
        "drift, relative, worst": _worst_drift(rows),
        **_suffix(rows[0]),
        "norm, relative": over(lambda r: r.norm),
        "smallest norm that recovers": number(lambda r: r.curve.median_norm_recovers),
        "... that injects": number(lambda r: r.curve.median_norm_injects),
        "recovery advantage": number(lambda r: r.curve.recovery_advantage),
        "retained accuracy, clean -> defended": " -> ".join(
            [
                number(lambda r: r.side_effects.retain_accuracy_clean),
                number(lambda r: r.side_effects.retain_accuracy_defended),
            ]
        ),
        "KL on neutral text (nats)": number(lambda r: r.side_effects.kl),
        **{
            n.replace("_", " "): number(lambda r, n=n: r.side_effects.figures[n])  # type: ignore[misc]
            for n in _shared(r.side_effects.figures for r in rows)
        },
        **_suite(rows),
        "attack cost": _cost([r.compute.attack for r in rows]),
        "scoring cost": _cost([r.compute.scoring for r in rows]),
        "flags": "\n".join(_flags(rows)) or "none",
    }


def _detection(rows: Sequence[Row]) -> dict[str, str]:
    found = [row.detection for row in rows if row.detection is not None]
    if not found:
        return {}
    return {
        "detected, of the perturbed": _with_interval(over_targets(d.attacked for d in found)),
        "... of the recovered": _with_interval(over_targets(d.recovered for d in found)),
        f"false alarms (stated {found[0].stated:g})": _with_interval(
            over_targets(d.false_alarms for d in found)
        ),
    }


def _suite(rows: Sequence[Row]) -> dict[str, str]:
    members = [member for row in rows for member in row.suite]
    broken: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for member in members:
        broken[member.attack] += member.broken
        tried[member.attack] += member.tried
    return {f"suite: {name}": f"{broken[name]} of {tried[name]} broken" for name in tried}


def _targets(name: str, rows: Sequence[Row]) -> Table:
    """A task's targets, a line each."""
    table = Table(title=f"{name}, each target")
    for heading in ("", "valid flips", "recovery", "constrained", "wrong target", "retained"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(
            row.task.partition("/")[2],
            f"{row.examples.valid} of {row.examples.n}",
            rate(row.recovery),
            rate(row.constrained),
            rate(row.controls.wrong_target),
            _number(row.side_effects.retain_accuracy_defended),
        )
    return table


def _shared(figures: Iterable[Mapping[str, object]]) -> list[str]:
    """Names that all have."""
    first, *others = figures
    return [name for name in first if all(name in other for other in others)]


def _flags(rows: Sequence[Row]) -> list[str]:
    """Each flag, and in how many rows it stands if not in all."""
    count = Counter(flag for row in rows for flag in row.flags)
    return [flag if n == len(rows) else f"{flag} ({n} of {len(rows)})" for flag, n in count.items()]


def rate(value: Rate) -> str:
    """Such as "0.95 [0.88, 0.98]"; "-" where there is nothing to count."""
    return _with_interval(interval(value))


def _with_interval(found: Interval | None) -> str:
    if found is None:
        return NONE
    # rich takes a bare bracket for markup
    return f"{found.centre:.2f} \\[{found.low:.2f}, {found.high:.2f}]"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _suffix(row: Row) -> dict[str, str]:
    said = row.perturbation
    return {} if said.length is None else {"suffix": f"{said.length} {said.kind}"}


def _worst_drift(rows: Sequence[Row]) -> str:
    worst = worst_drift(*rows)
    return NONE if worst is None else f"{worst[0]:.2g} ({worst[1]})"


def _cost(costs: Sequence[Cost]) -> str:
    return f"{sum(c.seconds for c in costs):.1f} s, {sum(c.flops for c in costs):.2g} FLOPs"
