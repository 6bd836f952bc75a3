"""A run as a table: one column per task, then what its flags mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from saebench_recovery.results.report.escape import terminal
from saebench_recovery.results.report.headline import explained, headline, terms, title
from saebench_recovery.results.report.numbers import NONE, estimate, mean_number
from saebench_recovery.results.summary import by_task, over_rows, over_targets, worst_drift
from saebench_recovery.schema import Cost, Mean, Rate, Row, RunResult, SideEffects
from saebench_recovery.scoring import measures


def print_result(result: RunResult, *, full: bool = False) -> None:
    """Print the rows of a run, and an explanation of each flag that stands in them.

    Args:
        result: the run.
        full: all figures, and each target of a task, in place of those that a run is read by.
    """
    console = Console()
    tasks = by_task(result.rows)
    console.print(_table(result, tasks) if full else headline(title(result), tasks))
    if full:
        for name, rows in tasks.items():
            if len(rows) > 1:
                console.print(_targets(name, rows))
    else:
        console.print(terminal("; ".join(terms(result))), highlight=False)
    if result.status == "partial":
        console.print("partial: repeat the command to run the tasks that are missing")
    for flag, where in explained(tasks):
        line = f"[bold]{terminal(flag.name)}[/bold] ({flag.level}, {terminal(', '.join(where))}): "
        console.print(f"{line}{terminal(flag.sentence)}; {terminal(flag.remedy)}", highlight=False)
    if result.spec["protocol"] is not None:
        # Published intervals need scipy, which takes a second to import.
        from saebench_recovery.results.report.published_table import print_comparison

        print_comparison(console, result)


def _table(result: RunResult, tasks: Mapping[str, Sequence[Row]]) -> Table:
    table = Table(
        title=terminal(title(result)),
        caption=terminal("; ".join(terms(result))),
    )
    table.add_column("", style="bold")
    for name, rows in tasks.items():
        heading = name if len(rows) == 1 else f"{name}, mean of {len(rows)}"
        table.add_column(terminal(heading), justify="right")
    columns = [_lines(rows) for rows in tasks.values()]
    # A task may have figures of its own, so columns need not have all lines.
    for label in dict.fromkeys(label for column in columns for label in column):
        table.add_row(terminal(label), *(column.get(label, NONE) for column in columns))
    return table


def _lines(rows: Sequence[Row]) -> dict[str, str]:
    """A task's column by the lines' labels; of one with several targets, the mean over them."""
    return {
        "valid flips / base / examples": " / ".join(
            str(sum(getattr(row.examples, name) for row in rows)) for name in ("valid", "base", "n")
        ),
        "behaviour under attack": _over(rows, lambda r: r.under_attack),
        **{
            measure.title: _over(rows, lambda r, m=measure: r.measures.get(m.name))  # type: ignore[misc]
            for measure in measures.MEASURES
        },
        **{
            name.replace("_", " "): _over(rows, lambda r, n=name: r.figures[n])  # type: ignore[misc]
            for name in _in_all(row.figures for row in rows)
        },
        "constraint": "\n".join(
            dict.fromkeys(f"{r.constraint.kind}, rank {r.constraint.rank}" for r in rows)
        ),
        **_detection(rows),
        "drift, relative, worst": _worst_drift(rows),
        **_added_tokens(rows[0]),
        "smallest norm that recovers": mean_number([r.curve.median_norm_recovers for r in rows]),
        "... that injects": mean_number([r.curve.median_norm_injects for r in rows]),
        "recovery advantage": mean_number([r.curve.recovery_advantage for r in rows]),
        **_stages(rows),
        **_side_effects(rows),
        **_suite(rows),
        "attack cost": _cost([r.compute.attack for r in rows]),
        "scoring cost": _cost([r.compute.scoring for r in rows]),
        "flags": "\n".join(_flags(rows)) or "none",
    }


def _over(rows: Iterable[Row], of: Callable[[Row], Rate | Mean | None]) -> str:
    return estimate(over_rows(rows, of))


def _detection(rows: Sequence[Row]) -> dict[str, str]:
    detections = [row.detection for row in rows if row.detection is not None]
    if not detections:
        return {}
    return {
        "detected, of the perturbed": estimate(over_targets(d.attacked for d in detections)),
        "... of the recovered": estimate(over_targets(d.recovered for d in detections)),
        f"false alarms (stated {detections[0].stated:g})": estimate(
            over_targets(d.false_alarms for d in detections)
        ),
    }


def _side_effects(rows: Sequence[Row]) -> dict[str, str]:
    effects = [row.side_effects for row in rows]
    return {
        "retain examples kept": _kept(effects),
        "KL on neutral text (nats)": mean_number([e.kl for e in effects]),
        **{
            name.replace("_", " "): mean_number([e.figures[name] for e in effects])
            for name in _in_all(e.figures for e in effects)
        },
    }


def _kept(effects: Sequence[SideEffects]) -> str:
    """Of those that the clean model gets right: what it does not, no defense can break."""
    known = sum(e.retain_known for e in effects)
    return f"{sum(e.retain_kept for e in effects)} of {known}" if known else NONE


def _stages(rows: Sequence[Row]) -> dict[str, str]:
    """How an attack on weights went on; of a task with several targets, the mean over them."""
    lines = {}
    for stages in zip(*(row.stages for row in rows), strict=False):
        recovery, wrong = (
            over_targets(getattr(stage, name) for stage in stages)
            for name in ("recovery", "wrong_target")
        )
        retained = mean_number([stage.retained for stage in stages])
        after = (
            f"after {stages[0].steps} steps: recovery" if stages[0].steps else "rounded: recovery"
        )
        lines[after] = estimate(recovery)
        lines[f"{after.partition(':')[0]}: wrong target"] = estimate(wrong)
        lines[f"{after.partition(':')[0]}: retained"] = retained
    return lines


def _suite(rows: Sequence[Row]) -> dict[str, str]:
    broken: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for member in (member for row in rows for member in row.suite):
        broken[member.attack] += member.broken
        tried[member.attack] += member.tried
    failed = {m.attack: m.failed for row in rows for m in row.suite if m.failed}
    return {
        f"suite: {name}": f"{broken[name]} of {tried[name]} broken"
        + (f"; failed: {terminal(failed[name])}" if name in failed else "")
        for name in tried
    }


def _targets(name: str, rows: Sequence[Row]) -> Table:
    """A task's targets, a line each."""
    shown = [
        measure
        for measure in measures.MEASURES
        if measure.headline and {estimate(row.measures.get(measure.name)) for row in rows} != {NONE}
    ]
    table = Table(title=terminal(f"{name}, each target"))
    table.add_column("")
    for heading in ("valid flips", *(measure.title for measure in shown), "kept"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            terminal(row.task.partition("/")[2]),
            f"{row.examples.valid} of {row.examples.n}",
            *(estimate(row.measures.get(measure.name)) for measure in shown),
            _kept([row.side_effects]),
        )
    return table


def _in_all(figures: Iterable[Mapping[str, object]]) -> list[str]:
    """The names that all have."""
    first, *others = figures
    return [name for name in first if all(name in other for other in others)]


def _flags(rows: Sequence[Row]) -> list[str]:
    """Each flag, and in how many rows it stands if not in all."""
    count = Counter(flag for row in rows for flag in dict.fromkeys(map(str, row.flags)))
    return [
        terminal(flag) if n == len(rows) else f"{terminal(flag)} ({n} of {len(rows)})"
        for flag, n in count.items()
    ]


def _added_tokens(row: Row) -> dict[str, str]:
    added = row.perturbation
    return {} if added.length is None else {"suffix": f"{added.length} {terminal(added.kind)}"}


def _worst_drift(rows: Sequence[Row]) -> str:
    worst = worst_drift(*rows)
    return NONE if worst is None else f"{worst[0]:.2g} ({terminal(worst[1])})"


def _cost(costs: Sequence[Cost]) -> str:
    return f"{sum(c.seconds for c in costs):.1f} s, {sum(c.flops for c in costs):.2g} FLOPs"
