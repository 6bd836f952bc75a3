"""The engine of one machine: a process for each device, on the CPU one for each core.

Each process holds one target at a time and takes group after group. One that dies costs the cell
that it was at: what it had not begun goes to another.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from saebench_recovery.base.errors import UserError
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.shared import Shared
from saebench_recovery.runs.sweep.cells import Groups
from saebench_recovery.runs.sweep.engine import Orders, Outcome, attempt

DEVICES, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
Environment = Mapping[str, str]


def environments(device: str, jobs: int | None) -> list[Environment]:
    """What each process finds in its environment: its device, or its share of the cores.

    By default there are as many processes as devices or cores, and one for a device by its name.
    """
    import torch

    if device == "auto" and torch.cuda.is_available():
        named = os.environ.get(DEVICES)
        each = named.split(",") if named else list(map(str, range(torch.cuda.device_count())))
        return [{DEVICES: each[i % len(each)]} for i in range(jobs or len(each))]
    if device not in ("auto", "cpu"):
        return [{}] * (jobs or 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = jobs or cores or 1
    threads = os.environ.get(THREADS) or str(max(1, (cores or 1) // jobs))
    return [{THREADS: threads}] * jobs


@dataclass
class _Worker:
    """A process, our end of the pipe to it, and what is left of the group that it was given."""

    process: SpawnProcess
    connection: Connection
    environment: Environment
    group: deque[Plan] = field(default_factory=deque)

    def give(self, group: Sequence[Plan]) -> None:
        self.group = deque(group)
        self._send([plan.fresh() for plan in group])

    def dismiss(self) -> None:
        self._send(None)
        self.process.join()

    def _send(self, what: Sequence[Plan] | None) -> None:
        with suppress(OSError):  # it is dead, which is heard next
            self.connection.send(what)

    def lost(self) -> Outcome:
        """What is said of the cell at which it died.

        Raises:
            UserError: it was at none, so that another would die too.
        """
        self.process.join()
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not self.group:
            raise UserError(f"a process of the sweep ended before its first cell ({how})")
        line = f"its process ended ({how}); if memory is short, try fewer --jobs"
        return Outcome(self.group.popleft().identity, line)


@dataclass(frozen=True)
class Processes:
    """One process for each environment; `prepare` is called in each before anything else."""

    orders: Orders
    environments: Sequence[Environment]
    prepare: Callable[[], None]

    def outcomes(self, groups: Groups) -> Iterator[Outcome]:
        """See `Engine`.

        Raises:
            UserError: a process cannot begin.
        """
        waiting = deque(groups)
        workers = [self._started(place) for place in self.environments[: len(waiting)]]
        try:
            while workers:
                ready = wait([worker.connection for worker in workers])
                for worker in [w for w in workers if w.connection in ready]:
                    try:
                        outcome = worker.connection.recv()
                    except (EOFError, OSError):
                        workers.remove(worker)
                        yield worker.lost()
                        if worker.group:
                            waiting.appendleft(worker.group)
                        if waiting:
                            workers.append(self._started(worker.environment))
                        continue
                    if outcome is not None:
                        worker.group.popleft()
                        yield outcome
                    elif waiting:
                        worker.give(waiting.popleft())
                    else:
                        worker.dismiss()
                        workers.remove(worker)
        finally:
            for worker in workers:  # of a sweep that is stopped
                worker.process.terminate()
                worker.process.join()

    def _started(self, environment: Environment) -> _Worker:
        context = get_context("spawn")  # a fork of a process with threads may hang
        ours, theirs = context.Pipe()
        what = (theirs, self.orders, self.prepare, environment)
        process = context.Process(target=_work, args=what, daemon=True)
        process.start()
        theirs.close()  # so that its death ends the pipe
        return _Worker(process, ours, environment)


def _work(
    connection: Connection,
    orders: Orders,
    prepare: Callable[[], None],
    environment: Environment,
) -> None:
    """Ask for groups until there are none; None asks for one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this is interrupted, and ends it
    os.environ.update(environment)  # before torch is imported, which reads it
    prepare()
    shared = Shared()
    with suppress(EOFError, BrokenPipeError):  # whoever started this is dead
        connection.send(None)
        while (group := connection.recv()) is not None:
            for plan in group:
                connection.send(attempt(plan, orders, shared))
            connection.send(None)
