"""The protocol of engines, what becomes of a cell, and the engine that needs no other process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress
from saebench_recovery.base.reading import reason
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.run import carried_out
from saebench_recovery.runs.shared import Shared
from saebench_recovery.runs.sweep.cells import Groups


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: `error` is the line that it gave, None where it is complete.

    `flips` are the valid flips that its rows are about.
    """

    identity: str
    error: str | None
    flips: int = 0


@dataclass(frozen=True)
class Orders:
    """What all cells of a sweep are told, beside their plans."""

    out: Path
    force: bool = False
    keep_text: bool = False


class Engine(Protocol):
    """Carries cells out, each once; it neither repeats nor judges them."""

    def outcomes(self, groups: Groups) -> Iterator[Outcome]:
        """One outcome for each cell, in any order, as they come; cells of a group share."""
        ...


def attempt(
    plan: Plan, orders: Orders, shared: Shared, progress: Progress | None = None
) -> Outcome:
    """Carry a cell out; whatever goes wrong in it is a line, and the next one may begin."""
    error, flips = None, 0
    try:
        result = carried_out(
            plan.fresh(),  # a second attempt starts as the first one did
            orders.out,
            shared,
            force=orders.force,
            keep_text=orders.keep_text,
            progress=progress,
        )
        flips = sum(row.examples.valid for row in result.rows)
    except UserError as refused:
        error = " ".join(str(refused).split())
    except (Exception, SystemExit) as broken:  # of a plugin, a library or ours: the others go on
        error = f"{type(broken).__name__}: {reason(broken)}"
    if error and os.environ.get("SAEBENCH_DEBUG"):
        traceback.print_exc()
    return Outcome(plan.identity, error, flips)


@dataclass(frozen=True)
class ThisProcess:
    """One cell after the other, here."""

    orders: Orders
    progress: Progress | None = None

    def outcomes(self, groups: Groups) -> Iterator[Outcome]:
        shared = Shared(several=True)
        for group in groups:
            for plan in group:
                yield attempt(plan, self.orders, shared, self.progress)
