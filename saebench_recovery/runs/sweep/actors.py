"""The engine of a Ray cluster: an actor for each target and share of a GPU.

Ray starts an actor again that was lost, and repeats nothing: which cells are tried again is up to
`sweep`. What an actor has written is published here, once it has said that it is complete.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import reason
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.sweep.cell_worker import CellWorker
from saebench_recovery.runs.sweep.cells import Groups
from saebench_recovery.runs.sweep.destination import Destination
from saebench_recovery.runs.sweep.engine import Orders, Outcome

RESTARTS = 1  # by Ray, of one actor
LOST = "its worker was lost: killed, or with its machine; if memory is short, try fewer --jobs"
BARREN = 5  # actors lost one after the other before any of them had begun
PATIENCE = 600.0  # seconds for a cluster to find room, with no cell under way


@dataclass
class _Worker:
    """An actor, what is left of its group of cells, and where it writes the first of them."""

    actor: Any
    first: Plan
    begun: bool = False
    lost: int = 0
    group: deque[Plan] = field(default_factory=deque)
    place: str = ""


@dataclass
class Actors:
    """So many actors, each with a core and a share of a GPU.

    `prepare` is called in each before anything else.
    """

    orders: Orders
    destination: Destination
    workers: int
    gpu_share: float
    prepare: Callable[[], None]
    _waiting: deque[deque[Plan]] = field(default_factory=deque, init=False)
    _calls: dict[Any, _Worker] = field(default_factory=dict, init=False)
    _barren: int = field(default=0, init=False)

    def outcomes(self, groups: Groups) -> Iterator[Outcome]:
        """See `Engine`.

        Raises:
            UserError: a machine has no room for a worker, or is not like this one.
        """
        self._waiting, self._calls, self._barren = deque(map(deque, groups)), {}, 0
        try:
            for group in groups[: self.workers]:
                self._hire(group[0])
            while self._waiting or self._busy():
                call = self._next_call()
                worker = self._calls.pop(call)
                outcome = self._heard(call, worker)
                self._occupy(worker)
                if outcome is not None:
                    yield outcome
        finally:
            for worker in self._calls.values():
                ray.kill(worker.actor)

    def _busy(self) -> bool:
        return any(worker.group for worker in self._calls.values())

    def _hire(self, plan: Plan) -> None:
        """Start an actor for the target of a plan."""
        remote = ray.remote(CellWorker).options(
            num_cpus=1, num_gpus=self.gpu_share, max_restarts=RESTARTS, max_task_retries=0
        )
        self._begin(_Worker(remote.remote(), plan))

    def _begin(self, worker: _Worker) -> None:
        call = worker.actor.begin.remote(os.getcwd(), self.prepare, worker.first)
        self._calls[call] = worker

    def _next_call(self) -> Any:
        """A call that has ended; cells may take any time, and room is waited for in vain once."""
        patience = None if self._busy() else PATIENCE
        ended, _ = ray.wait(list(self._calls), num_returns=1, timeout=patience)
        if not ended:
            raise UserError(f"the cluster has had no room for a worker in {PATIENCE:.0f} seconds")
        return ended[0]

    def _heard(self, call: Any, worker: _Worker) -> Outcome | None:
        """What became of the cell at which a worker was; None if it was at none."""
        try:
            answer: Any = ray.get(call)
        except RayTaskError as error:  # what neither `begin` nor `carry_out` has words for
            answer = f"{type(error.cause).__name__}: {reason(error.cause)}"
            if worker.begun:
                answer = Outcome(worker.group[0].identity, answer)
        except RayError as error:
            return self._lost(worker, error)
        self._barren = 0
        if not worker.begun:
            if answer is not None:
                raise UserError(answer)
            worker.begun = True
            return None
        worker.group.popleft()
        return self._published(answer, worker.place)

    def _lost(self, worker: _Worker, error: RayError) -> Outcome | None:
        """The cell at which a worker was lost is an attempt less; the rest of its group waits."""
        worker.begun, worker.lost = False, worker.lost + 1
        if not worker.group:
            self._barren += 1
            if self._barren >= BARREN:
                raise UserError(f"workers end before their first cell: {reason(error)}")
            return None
        plan = worker.group.popleft()
        if worker.group:
            self._waiting.appendleft(worker.group)
            worker.group = deque()
        return Outcome(plan.identity, LOST)

    def _published(self, outcome: Outcome, place: str) -> Outcome:
        if outcome.error is None:
            try:
                self.destination.publish(place, outcome.identity, anew=self.orders.force)
            except (UserError, OSError) as error:
                return replace(outcome, error=reason(error))
        return outcome

    def _occupy(self, worker: _Worker) -> None:
        """Give a worker that waits its next cell, or let it go."""
        if not worker.begun and worker.lost <= RESTARTS:
            self._begin(worker)
            return
        if not worker.group and self._waiting:
            target = worker.first.spec.target
            fitting = [group for group in self._waiting if group[0].spec.target == target]
            if not (worker.begun and fitting):
                ray.kill(worker.actor)
                self._hire(self._waiting[0][0])
                return
            worker.group = fitting[0]
            self._waiting.remove(fitting[0])
        if not worker.group:
            ray.kill(worker.actor)
            return
        plan = worker.group[0]
        worker.place = self.destination.attempt(plan.identity)
        call = worker.actor.carry_out.remote(plan.fresh(), self.orders, worker.place)
        self._calls[call] = worker
