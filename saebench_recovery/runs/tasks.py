"""The tasks of a run evaluated: one after the other here, or side by side in processes.

Processes only compute. What is to be kept goes to the one that began them, the only writer.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

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
    own = shared.journal(plan, task, seen, journal)
    facts = attacked(seen, plan.matchups[task].attack, plan.spec, own, progress)
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


@dataclass(frozen=True)
class SideBySide:
    """Evaluates tasks in processes, each of which takes one task at a time."""

    plan: Plan
    tasks: Sequence[str]
    sharing: Sharing
    journal: RunJournal
    progress: Progress
    _shares: dict[str, float] = field(default_factory=dict)

    def each(self, shared: Shared) -> Iterator[Evaluated]:
        """Evaluate the tasks, what takes longest first; they come in any order.

        They are done here, one after the other, where this process is enough.

        Raises:
            UserError: see `evaluated`, or a process ended.
        """
        target, matchups = shared.target(self.plan), self.plan.matchups
        if not self.sharing.divides(len(matchups)):  # counting would lay out all examples anew
            yield from one_after_another(self.plan, shared, self.tasks, self.journal, self.progress)
            return
        limit = self.plan.spec.limit
        flips = {
            task: len(matchup.task.examples(target, "evaluation")[:limit])
            for task, matchup in matchups.items()
        }
        # Of all tasks, also those that are done: as many threads give the same bits.
        places = self.sharing.places(
            self.plan.spec.device,
            groups=len(matchups),
            flips=sum(flips.values()),
            loaded_bytes=target.model_bytes,
        )
        if not places:
            yield from one_after_another(self.plan, shared, self.tasks, self.journal, self.progress)
            return
        self._shares.update({task: float(task not in self.tasks) for task in matchups})

        def cost(task: str) -> tuple[int, int]:
            return matchups[task].task.new_tokens, flips[task]

        # What takes longest comes first, so that it is not waited for alone.
        groups = [[task] for task in sorted(self.tasks, key=cost, reverse=True)]
        begin = partial(_begun, self.sharing.prepare(), self.plan.fresh(), self.journal.folder)
        processes = Processes[str, Evaluated | Exception](places, begin, self._hear)
        for task, answer in processes.answers(groups):
            if isinstance(answer, Death):
                raise UserError(
                    f"{task}: its process ended ({answer.how}); what was done is kept; if memory "
                    "is short, try fewer --jobs"
                )
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def _hear(self, told: Packed | StoredFailure | _Progress) -> None:
        if isinstance(told, Packed):
            self.journal.keep(told)
        elif isinstance(told, StoredFailure):
            self.journal.fail(told.task, told.attack, told.line)
        else:
            self._shares[told.task] = told.share
            done = sum(share == 1 for share in self._shares.values())
            what = f"{done} of {len(self._shares)} tasks done, {told.what}"
            self.progress(what, sum(self._shares.values()), len(self._shares))


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
