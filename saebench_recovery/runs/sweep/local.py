"""The engine of one machine: several processes, of which each holds one target at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from saebench_recovery.base.progress import Progress, seldom, silent
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.processes import Death, Environment, Processes, Tell
from saebench_recovery.runs.shared import Shared
from saebench_recovery.runs.sweep.cells import Groups
from saebench_recovery.runs.sweep.engine import Orders, Outcome, attempt


@dataclass(frozen=True)
class SeveralProcesses:
    """One process for each environment; `prepare` is called in each before anything else.

    `progress` hears of all cells, now of one and now of another.
    """

    orders: Orders
    environments: Sequence[Environment]
    prepare: Callable[[], None]
    progress: Progress = silent

    def outcomes(self, groups: Groups) -> Iterator[Outcome]:
        """See `Engine`.

        Raises:
            UserError: a process cannot begin.
        """
        begin = partial(_begun, self.orders, self.prepare)
        each = Processes[Plan, Outcome](self.environments, begin, lambda told: self.progress(*told))
        for plan, outcome in each.answers([[plan.fresh() for plan in group] for group in groups]):
            if isinstance(outcome, Death):
                line = f"its process ended ({outcome.how}); if memory is short, try fewer --jobs"
                yield Outcome(plan.identity, line)
            else:
                yield outcome


def _begun(orders: Orders, prepare: Callable[[], None], tell: Tell) -> Callable[[Plan], Outcome]:
    """What carries out a cell after the other, and shares between them."""
    prepare()
    shared, progress = Shared(several=True), seldom(lambda *told: tell(told))
    return lambda plan: attempt(plan, orders, shared, progress)
