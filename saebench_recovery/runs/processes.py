"""Work in processes of one machine: one for each device, on the CPU one for each core.

Each process takes group after group of pieces of work. One that dies costs the piece that it was
at: what it had not begun goes to another.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from saebench_recovery.base.errors import UserError

DEVICES, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
Environment = Mapping[str, str]
Piece = TypeVar("Piece")
Answer = TypeVar("Answer")
Tell = Callable[[Any], None]
"""How the work on a piece says something before it has its answer."""


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    jobs = jobs or cores()
    threads = os.environ.get(THREADS) or str(max(1, cores() // jobs))
    return [{THREADS: threads}] * jobs


@dataclass(frozen=True)
class Death:
    """What takes the place of an answer where the process ended; such as "killed by SIGKILL"."""

    how: str


@dataclass(frozen=True)
class _Told:
    """Something said before the answer."""

    what: Any


@dataclass
class _Worker(Generic[Piece]):
    """A process, our end of the pipe to it, and what is left of the group that it was given."""

    process: SpawnProcess
    connection: Connection
    environment: Environment
    group: deque[Piece] = field(default_factory=deque)

    def give(self, group: Sequence[Piece]) -> None:
        self.group = deque(group)
        self._send(list(group))

    def dismiss(self) -> None:
        self._send(None)
        self.process.join()

    def _send(self, what: list[Piece] | None) -> None:
        with suppress(OSError):  # it is dead, which is heard next
            self.connection.send(what)

    def lost(self) -> tuple[Piece, Death]:
        """The piece at which it died.

        Raises:
            UserError: it was at none, so that another would die too.
        """
        self.process.join()
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not self.group:
            raise UserError(f"a process ended before its first piece of work ({how})")
        return self.group.popleft(), Death(how)


@dataclass(frozen=True)
class Processes(Generic[Piece, Answer]):
    """One process for each environment; `begin` is called in each and gives what does the work.

    An answer may be anything but None. What the work tells before it is heard by `hear`.
    """

    environments: Sequence[Environment]
    begin: Callable[[Tell], Callable[[Piece], Answer]]
    hear: Tell = lambda what: None

    def answers(self, groups: Sequence[Sequence[Piece]]) -> Iterator[tuple[Piece, Answer | Death]]:
        """Each piece with its answer, in any order, as they come; a group is of one process.

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
                        answer = worker.connection.recv()
                    except (EOFError, OSError):
                        workers.remove(worker)
                        yield worker.lost()
                        if worker.group:
                            waiting.appendleft(worker.group)
                        if waiting:
                            workers.append(self._started(worker.environment))
                        continue
                    if isinstance(answer, _Told):
                        self.hear(answer.what)
                    elif answer is not None:
                        yield worker.group.popleft(), answer
                    elif waiting:
                        worker.give(waiting.popleft())
                    else:
                        worker.dismiss()
                        workers.remove(worker)
        finally:
            _end(workers)  # of work that is stopped

    def _started(self, environment: Environment) -> _Worker[Piece]:
        context = get_context("spawn")  # a fork of a process with threads may hang
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.begin), daemon=True)
        # Before it begins: what it is given may import torch, which reads this only then.
        with _environment(environment):
            process.start()
        theirs.close()  # so that its death ends the pipe
        return _Worker(process, ours, environment)


def _end(workers: Iterable[_Worker[Piece]]) -> None:
    for worker in workers:
        worker.process.terminate()
        worker.process.join()


@contextmanager
def _environment(added: Environment) -> Iterator[None]:
    """What this process gives to those that it starts."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(
    connection: Connection,
    begin: Callable[[Tell], Callable[[Piece], Answer]],
) -> None:
    """Ask for groups until there are none; None asks for one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this is interrupted, and ends it
    answer = begin(lambda what: connection.send(_Told(what)))
    with suppress(EOFError, BrokenPipeError):  # whoever started this is dead
        connection.send(None)
        while (group := connection.recv()) is not None:
            for piece in group:
                connection.send(answer(piece))
            connection.send(None)
