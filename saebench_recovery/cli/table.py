"""A run as a table: one column per task, then what its flags mean."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from saebench_recovery.results.summary import worst_drift
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
    for row in result.rows:
        table.add_column(row.task, justify="right")
    columns = [_measures(row) for row in result.rows]
    # A task may have figures of its own, so columns need not have all rows.
    for measure in dict.fromkeys(name for column in columns for name in column):
        table.add_row(measure, *(column.get(measure, NONE) for column in columns))
    console.print(table)
    if result.status == "partial":
        console.print("partial: repeat the command to run the tasks that are missing")
    if flags := sorted({flag for row in result.rows for flag in row.flags}):
        from saebench_recovery.scoring.flags import MEANINGS  # imports torch

        for flag in flags:
            meaning = MEANINGS.get(flag, "unknown to this version")
            console.print(f"[bold]{flag}[/bold]: {meaning}", highlight=False)
    if spec["protocol"] is not None:
        from saebench_recovery.cli.comparison import print_comparison

        print_comparison(console, result)


def _measures(row: Row) -> dict[str, str]:
    limits = row.constrained.limits
    return {
        "valid flips / base / examples": f"{row.examples.valid} / {row.examples.base} / "
        f"{row.examples.n}",
        "recovery": rate(row.recovery),
        f"constrained (drift <= {limits.drift:g}, decoded <= {limits.decode:g})": rate(
            row.constrained
        ),
        f"base-like (fidelity >= {limits.fidelity:g})": rate(row.base_like),
        "fidelity to clean": mean(row.fidelity),
        **{name.replace("_", " "): mean(value) for name, value in row.figures.items()},
        "control: wrong target": rate(row.controls.wrong_target),
        "control: random direction": rate(row.controls.random_direction),
        "control: nothing": rate(row.controls.nothing),
        "constraint": f"{row.constraint.kind}, rank {row.constraint.rank}",
        **_detection(row),
        "drift, relative, worst": _worst_drift(row),
        "norm, relative": mean(row.norm),
        "smallest norm that recovers": _number(row.curve.median_norm_recovers),
        "... that injects": _number(row.curve.median_norm_injects),
        "retained accuracy, clean -> defended": f"{_number(row.side_effects.retain_accuracy_clean)}"
        f" -> {_number(row.side_effects.retain_accuracy_defended)}",
        "KL on neutral text (nats)": _number(row.side_effects.kl),
        **{n.replace("_", " "): _number(value) for n, value in row.side_effects.figures.items()},
        **{
            f"suite: {member.attack}": f"{member.broken} of {member.tried} broken"
            for member in row.suite
        },
        "attack cost": _cost(row.compute.attack),
        "scoring cost": _cost(row.compute.scoring),
        "flags": "\n".join(row.flags) or "none",
    }


def _detection(row: Row) -> dict[str, str]:
    found = row.detection
    if found is None:
        return {}
    return {
        "detected, of the perturbed": rate(found.attacked),
        "... of the recovered": rate(found.recovered),
        f"false alarms (stated {found.stated:g})": rate(found.false_alarms),
    }


def rate(value: Rate) -> str:
    """Such as "0.95 [0.88, 0.98]"; "-" where there is nothing to count."""
    return _with_interval(value.rate, value.low, value.high)


def mean(value: Mean) -> str:
    """Such as "0.21 [0.20, 0.23]"; "-" where there is nothing to average."""
    return _with_interval(value.mean, value.low, value.high)


def _with_interval(centre: float | None, low: float | None, high: float | None) -> str:
    if centre is None or low is None or high is None:
        return NONE
    return f"{centre:.2f} \\[{low:.2f}, {high:.2f}]"  # rich takes a bare bracket for markup


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _worst_drift(row: Row) -> str:
    worst = worst_drift(row)
    return NONE if worst is None else f"{worst[0]:.2g} ({worst[1]})"


def _cost(cost: Cost) -> str:
    return f"{cost.seconds:.1f} s, {cost.flops:.2g} FLOPs"
