"""A run under a protocol: our figures beside the published ones, and in what it departs."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from saebench_recovery.base.errors import UserError
from saebench_recovery.protocols.apply import departures
from saebench_recovery.protocols.compare import Figure, compare
from saebench_recovery.protocols.experiment import experiments
from saebench_recovery.results.report.escape import terminal
from saebench_recovery.results.report.numbers import NONE
from saebench_recovery.schema import RunResult


def print_comparison(console: Console, result: RunResult) -> None:
    """Print what the protocol that the run names has to say of it.

    Raises:
        UserError: this version does not know the protocol.
    """
    protocol, tasks = result.spec["protocol"], result.spec["tasks"]
    known = experiments(protocol)
    if len(tasks) != 1 or tasks[0] not in known:
        raise UserError(f"protocol {protocol!r} has one of {sorted(known)}, not tasks {tasks}")
    experiment = known[tasks[0]]
    if lines := compare(result, experiment):
        arm = experiment.arms[result.spec["attack"]]
        table = Table(title=f"{experiment.title}: {arm.title}", caption=experiment.source)
        table.add_column("", style="bold")
        for heading in ("ours", "published"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for line in lines:
            ours = NONE if line.ours is None else figure(line.ours)
            table.add_row(line.measure, ours, figure(line.theirs), line.note)
        console.print(table)
    else:
        attack = terminal(result.spec["attack"])
        console.print(f"nothing is published about {attack} in these rows")
    for departure in departures(result.spec, experiment):
        console.print(f"[bold]departs:[/bold] {terminal(departure)}", highlight=False)
    settings = (
        experiment.run,
        experiment.defense_config,
        experiment.settings_of(result.spec["attack"]),
        experiment.task_config,
    )
    deviations = sum(s.basis == "deviation" for group in settings for s in group.values())
    console.print(
        f"{deviations + len(experiment.differences)} differences from the published protocol are "
        "by design: see docs/protocol.md",
        highlight=False,
    )


def figure(shown: Figure) -> str:
    """Such as "37/37 = 1.000 [0.906, 1.000]"; "-" where there is none."""
    if shown.value is None:
        return NONE
    text = f"{shown.value:.3f}"
    if shown.n is not None:
        text = f"{shown.k}/{shown.n} = {text}"
    elif shown.low is None and shown.value == int(shown.value):  # mostly a count
        text = f"{shown.value:.0f}"
    if shown.low is None or shown.high is None:
        return text
    return f"{text} [{shown.low:.3f}, {shown.high:.3f}]"
