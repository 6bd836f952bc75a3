"""Several runs from one command: how they are carried out, and what is said of them at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saebench_recovery.base.printable import printable
from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.live_view import live_view
from saebench_recovery.spec import RunSpec

if TYPE_CHECKING:
    from saebench_recovery.base.progress import Progress
    from saebench_recovery.runs.plan import Plan
    from saebench_recovery.runs.sweep.engine import Engine, Orders, Outcome


@dataclass(frozen=True)
class Sending:
    """How cells are carried out, in which `jobs` processes; None is one for each device or core.

    `named` is what the command line itself says of target and tasks: code that it names, and no
    file's, may be imported.
    """

    orders: Orders
    jobs: int | None
    plugins: Sequence[Path]
    named: RunSpec


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
        UserError: settings that do not fit, or results cannot be written; nothing has run then.
    """
    from saebench_recovery.results.store import check_writable
    from saebench_recovery.runs.sweep.cells import state
    from saebench_recovery.runs.sweep.engine import ThisProcess
    from saebench_recovery.runs.sweep.sweep import sweep

    orders = sending.orders
    left = [p for p in plans if orders.force or state(p, orders.out) != "done"]
    waiting = {plan.identity for plan in left}
    done = [plan for plan in plans if plan.identity not in waiting]
    with stoppable():
        outcomes = {o.identity: o for o in ThisProcess(orders).outcomes([done])}
        if left:
            check_writable(orders.out)
            for plan in left:
                plan.check_settings()
            with live_view(len(left), wanted=not quiet) as view:
                engine, workers = _engine(left, sending, view.told)
                try:
                    outcomes |= sweep(left, engine, workers, view.finished)
                except KeyboardInterrupt as stop:
                    kept = f"what is done is kept in {str(orders.out)!r}"
                    raise type(stop)(f"{kept}; the same command goes on from there") from None
    return [outcomes[plan.identity] for plan in plans]


def _engine(left: Sequence[Plan], sending: Sending, told: Progress) -> tuple[Engine, int]:
    """The engine for these cells, and how many of them it carries out at a time."""
    from saebench_recovery.runs.processes import environments
    from saebench_recovery.runs.sweep.engine import ThisProcess
    from saebench_recovery.runs.sweep.local import SeveralProcesses

    if sending.jobs != 1:
        places = environments(left[0].spec.device, sending.jobs)[: len(left)]
        if len(places) > 1:
            prepared = partial(prepare, sending.plugins, sending.named)
            return SeveralProcesses(sending.orders, places, prepared), len(places)
    return ThisProcess(sending.orders, told), 1


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
