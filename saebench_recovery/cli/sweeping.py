"""Several runs from one command: how they are carried out, and what is said of them at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saebench_recovery.base.printable import printable
from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.live_view import live_view
from saebench_recovery.cli.on_cluster import Cluster, actors
from saebench_recovery.spec import RunSpec

if TYPE_CHECKING:
    from saebench_recovery.base.progress import Progress
    from saebench_recovery.runs.plan import Plan
    from saebench_recovery.runs.sweep.destination import Destination
    from saebench_recovery.runs.sweep.engine import Engine, Orders, Outcome


@dataclass(frozen=True)
class Sending:
    """How cells are carried out, in which `jobs` processes; None is one for each device or core.

    `named` is what the command line itself says of target and tasks: code that it names, and no
    file's, may be imported. Without a cluster the processes are this machine's.
    """

    orders: Orders
    destination: Destination
    jobs: int | None
    plugins: Sequence[Path]
    named: RunSpec
    cluster: Cluster | None = None


def prepare(plugins: Sequence[Path], named: RunSpec) -> None:
    """Import the user's files, and allow the code that the command line names."""
    from saebench_recovery.registry import load_plugin_file
    from saebench_recovery.runs.run import allow_named

    for file in plugins:
        load_plugin_file(file)
    allow_named(named)


def carry_out(plans: Sequence[Plan], sending: Sending, *, quiet: bool) -> list[Outcome]:
    """Read the cells that are complete and run the others; the outcome of each.

    Raises:
        UserError: settings that do not fit, results cannot be written, or no cluster; nothing has
            run then.
    """
    from saebench_recovery.runs.sweep.engine import Outcome, ThisProcess
    from saebench_recovery.runs.sweep.sweep import sweep

    orders, destination = sending.orders, sending.destination
    with stoppable():
        states = destination.states(plans)
        done = [p for p, s in zip(plans, states, strict=True) if s == "done" and not orders.force]
        complete = {plan.identity for plan in done}
        left = [plan for plan in plans if plan.identity not in complete]
        if sending.cluster is None:
            outcomes = {o.identity: o for o in ThisProcess(orders).outcomes([done])}
        else:
            outcomes = {identity: Outcome(identity, None) for identity in complete}
        if left:
            for plan in left:
                plan.check_settings()
            with (
                live_view(len(left), wanted=not quiet) as view,
                _engine(left, sending, view.told) as (engine, workers),
            ):
                try:
                    outcomes |= sweep(left, engine, workers, view.finished)
                except KeyboardInterrupt as stop:
                    kept = f"what is done is kept in {destination.name!r}"
                    raise type(stop)(f"{kept}; the same command goes on from there") from None
    return [outcomes[plan.identity] for plan in plans]


@contextmanager
def _engine(left: Sequence[Plan], sending: Sending, told: Progress) -> Iterator[tuple[Engine, int]]:
    """The engine for these cells, and how many of them it carries out at a time."""
    from saebench_recovery.results.store import check_writable
    from saebench_recovery.runs.processes import environments
    from saebench_recovery.runs.sweep.engine import ThisProcess
    from saebench_recovery.runs.sweep.local import SeveralProcesses

    orders, prepared = sending.orders, partial(prepare, sending.plugins, sending.named)
    if sending.cluster is not None:
        destination, jobs = sending.destination, sending.jobs
        with actors(sending.cluster, destination, orders, jobs, prepared) as found:
            yield found
        return
    check_writable(orders.out)
    places = environments(left[0].spec.device, sending.jobs) if sending.jobs != 1 else []
    if len(places[: len(left)]) > 1:
        places = places[: len(left)]
        yield SeveralProcesses(orders, places, prepared, told), len(places)
    else:
        yield ThisProcess(orders, told), 1


def report(plans: Sequence[Plan], outcomes: Sequence[Outcome]) -> int:
    """Say on standard error what failed, and the exit code of the command."""
    from saebench_recovery.runs.sweep.cells import title

    failed = [pair for pair in zip(plans, outcomes, strict=True) if pair[1].error is not None]
    for plan, outcome in failed:
        line = f"failed: {title(plan)} ({plan.identity}): {outcome.error}"
        print(printable(line), file=sys.stderr)
    if failed:
        count = f"{len(plans) - len(failed)} of {len(plans)} cells are complete"
        print(f"{count}; the same command tries the others again", file=sys.stderr)
    return 2 if failed else 0
