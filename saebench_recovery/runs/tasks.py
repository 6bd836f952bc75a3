"""The tasks of a run evaluated: one after the other here, or side by side in processes.

Processes only compute. What is to be kept goes to the one that began them, the only writer.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import one_line
from saebench_recovery.base.progress import Progress, part, seldom
from saebench_recovery.results.chunks import RunJournal, read_failures, read_log, written_in
from saebench_recovery.results.packed import Packed, pack
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.processes import Death, Processes, Tell
from saebench_recovery.runs.shared import Shared
from saebench_recovery.runs.sharing import Sharing
from saebench_recovery.schema import Facts, StoredFailure
from saebench_recovery.scoring.journal import Chunk, Journal, Written


@dataclass(frozen=True)
class Evaluated:
    """The facts of a task, and the commits of the hub's repositories that were read so far."""

    task: str
    facts: Facts
    commits: Mapping[str, str]


def evaluated(
    plan: Plan, shared: Shared, task: str, journal: Journal, progress: Progress
) -> Evaluated:
    """Fit the defense on a task and attack it.

    Raises:
        UserError: see `scoring.evaluate`.
    """
    # It imports torch and transformers, which a complete run does without.
    from saebench_recovery.scoring.evaluate import attacked

    seen = shared.undisturbed(plan, task, progress)
    facts = attacked(seen, plan.matchups[task].attack, plan.spec, journal, progress)
    return Evaluated(task, facts, shared.target(plan).commits)


def one_after_another(
    plan: Plan, shared: Shared, tasks: Sequence[str], journal: Journal, progress: Progress
) -> Iterator[Evaluated]:
    """Evaluate tasks in their order, those that are not among `tasks` being done.

    Raises:
        UserError: see `evaluated`.
    """
    every = list(plan.matchups)
    for task in tasks:
        number = every.index(task)
        before = f"task {number + 1} of {len(every)}, "
        told = part(progress, number / len(every), (number + 1) / len(every), before)
        yield evaluated(plan, shared, task, journal, told)


class SideBySide:
    """Evaluates tasks in processes, each of which takes one task at a time.

    Processes that will be wanted whatever the target's size begin at once, so that they import
    while this one loads. To be left as a context is, which ends them.
    """

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[str],
        sharing: Sharing,
        journal: RunJournal,
        progress: Progress,
    ) -> None:
        self._plan, self._tasks, self._sharing = plan, tasks, sharing
        self._journal, self._progress = journal, progress
        self._shares = {task: float(task not in tasks) for task in plan.matchups}
        limit = plan.spec.limit
        self._processes = self._among(
            flips=sys.maxsize if limit is None else limit * len(plan.matchups), loaded_bytes=0
        )
        self._processes.start(len(tasks))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._processes.stop()

    def each(self, shared: Shared) -> Iterator[Evaluated]:
        """Evaluate the tasks, what takes longest first; they come in any order.

        They are done here, one after the other, where this process is enough.

        Raises:
            UserError: see `evaluated`, or a process ended.
        """
        target, matchups = shared.target(self._plan), self._plan.matchups
        limit = self._plan.spec.limit
        flips = {
            task: len(matchup.task.examples(target, "evaluation")[:limit])
            for task, matchup in matchups.items()
        }
        wanted = self._among(flips=sum(flips.values()), loaded_bytes=target.model_bytes)
        if wanted.environments != self._processes.environments:
            self._processes.stop()
            self._processes = wanted
        if not wanted.environments:
            yield from one_after_another(
                self._plan, shared, self._tasks, self._journal, self._progress
            )
            return

        def cost(task: str) -> tuple[int, int]:
            return matchups[task].task.new_tokens, flips[task]

        # What takes longest comes first, so that it is not waited for alone.
        groups = [[task] for task in sorted(self._tasks, key=cost, reverse=True)]
        for task, answer in self._processes.answers(groups):
            if isinstance(answer, Death):
                raise UserError(
                    f"{task}: its process ended ({answer.how}); what was done is kept; if memory "
                    "is short, try fewer --jobs"
                )
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def _among(self, *, flips: int, loaded_bytes: int) -> Processes[str, Evaluated | Exception]:
        """The processes for so much work, not begun.

        Of all tasks, also those that are done: as many threads give the same bits.
        """
        places = self._sharing.places(
            self._plan.spec.device,
            groups=len(self._plan.matchups),
            flips=flips,
            loaded_bytes=loaded_bytes,
        )
        begin = partial(_begun, self._sharing.prepare(), self._plan.fresh(), self._journal.folder)
        return Processes(places, begin, self._hear)

    def _hear(self, told: Packed | StoredFailure | _Progress) -> None:
        if isinstance(told, Packed):
            self._journal.keep(told)
        elif isinstance(told, StoredFailure):
            self._journal.fail(told.task, told.attack, told.line)
        else:
            self._shares[told.task] = told.share
            done = sum(share == 1 for share in self._shares.values())
            what = f"{done} of {len(self._shares)} tasks done, {told.what}"
            self._progress(what, sum(self._shares.values()), len(self._shares))


@dataclass(frozen=True)
class _Progress:
    task: str
    what: str
    share: float


@dataclass(frozen=True)
class _ToldJournal:
    """The journal of a process: it reads the run's folder, and tells what is to be written."""

    folder: Path
    tell: Tell

    def written(self, task: str, attack: str) -> Sequence[Written]:
        return written_in(self.folder, read_log(self.folder), task, attack)

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        self.tell(pack(task, attack, chunk))

    def failure(self, task: str, attack: str) -> str:
        return read_failures(self.folder).get((task, attack), "")

    def fail(self, task: str, attack: str, line: str) -> None:
        self.tell(StoredFailure(task=task, attack=attack, line=line))


def _begun(
    prepare: Callable[[], None], plan: Plan, folder: Path, tell: Tell
) -> Callable[[str], Evaluated | Exception]:
    """What evaluates one task after the other, and shares between them."""
    prepare()
    import saebench_recovery.scoring.evaluate  # noqa: F401 -- slow, and there is nothing to do yet

    shared, journal = Shared(), _ToldJournal(folder, tell)

    def answer(task: str) -> Evaluated | Exception:
        try:
            return evaluated(plan, shared, task, journal, _telling(task, tell))
        except Exception as error:  # the other process decides what becomes of it
            return _sendable(error)

    return answer


def _telling(task: str, tell: Tell) -> Progress:
    return seldom(
        lambda what, done, total: tell(_Progress(task, what, done / total if total else 0.0))
    )


def _sendable(error: Exception) -> Exception:
    """The error, or its line where a library's cannot be sent; with the traceback of here."""
    error.add_note(traceback.format_exc())
    try:
        sent: Any = pickle.loads(pickle.dumps(error))
    except Exception:
        sent = None
    return error if type(sent) is type(error) else RuntimeError(one_line(error))
