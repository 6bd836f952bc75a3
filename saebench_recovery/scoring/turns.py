"""The attacks of a suite in turn, each on what those before it left unbroken.

A member that fails does not end the suite: it is named, with what it did before. What a defense, a
task or the disk does wrong ends the run, as does whatever a single attack does wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import one_line, who_ran_out
from saebench_recovery.base.progress import Progress, part
from saebench_recovery.interfaces import Attack
from saebench_recovery.model.meter import Meter, ticking
from saebench_recovery.schema import Record
from saebench_recovery.scoring.attack_and_score import posed, score_chunk
from saebench_recovery.scoring.batch_size import flips_of_a_chunk, flips_that_fit
from saebench_recovery.scoring.check.attack_contract import check_member
from saebench_recovery.scoring.check.catalogue import refuse
from saebench_recovery.scoring.journal import Chunk, Journal, Written
from saebench_recovery.scoring.rung_again import rung_again
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.suite import unbroken

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turns:
    """The chunks of each attack in the order of their turns, and the lines of those that failed."""

    chunks: Mapping[str, Sequence[Written]]
    failures: Mapping[str, str]


class MemberError(Exception):
    """A member of a suite did something wrong; its line."""


def taken_turns(
    setting: Setting,
    learned: Sequence[Flip],
    flips: Sequence[Flip],
    journal: Journal,
    progress: Progress,
) -> Turns:
    """Attack and score flips by each attack that the setting's stands for.

    Raises:
        UserError: see `_chunks`, or all members failed on some flip.
    """
    label, ids = setting.task.label, [flip.example.id for flip in flips]
    written: dict[str, list[Written]] = {}
    failures: dict[str, str] = {}
    records: list[Record] = []
    count = len(setting.members)
    for number, member in enumerate(setting.members):
        before = f"attack {number + 1} of {count}, " if count > 1 else ""
        told = part(progress, number / count, (number + 1) / count, before)
        name, left = member.attack.name, set(unbroken(ids, records))
        remaining = [flip for flip in flips if flip.example.id in left]
        own = written[name] = []
        try:
            for chunk in _chunks(member, learned, remaining, len(flips), journal, told):
                own.append(chunk)
        except MemberError as failed:
            failures[name] = str(failed)
            if not journal.failure(label, name):
                LOG.debug(failures[name], exc_info=failed.__cause__)
                journal.fail(label, name, failures[name])
        records += [record for chunk in own for record in chunk.records]
    untried = set(ids) - {record.id for record in records}
    if untried:
        raise UserError(
            f"{label}: all members of {setting.attack.title} failed on {len(untried)} flips; "
            f"{next(iter(failures.values()))}"
        )
    return Turns(written, failures)


def _chunks(
    setting: Setting,
    learned: Sequence[Flip],
    flips: Sequence[Flip],
    of_task: int,
    journal: Journal,
    progress: Progress,
) -> Iterator[Written]:
    """Attack and score flips in chunks that fit the memory, after what it learned from others.

    They are some of the task's, of which there are `of_task`.

    Chunks that the journal holds come first; a last one without records has the cost of learning.

    Raises:
        UserError: not even one flip fits, or the journal holds other flips than these.
        MemberError: the attack is a member of a suite, and fails or did so before.
    """
    label, attack = setting.task.label, setting.attack
    what = f"{label}: {setting.defense.name} against {attack.name}"
    done = 0
    for chunk in journal.written(label, attack.name):
        expected = [f.example.id for f in flips[done : done + len(chunk.records)]]
        if [record.id for record in chunk.records] != expected:
            raise UserError(f"{what}: the stored records are of other flips; repeat with --force")
        done += len(chunk.records)
        yield chunk
    if line := journal.failure(label, attack.name):
        raise MemberError(line)
    learning = Meter()
    with _own_faults(setting):
        if setting.in_suite:
            refuse(check_member(setting, flips[:1]))
        setting.measure()
        room = setting.spec.batch_size or flips_that_fit(setting, flips)
        size = setting.spec.batch_size or flips_of_a_chunk(setting, len(flips), room, of_task)
        if learned:
            with learning.counting():
                attack.fit(posed(setting.handed_out(), learned[:room], learning).shuffled()[0])
    while done < len(flips):
        at = f"{what}, {done} of {len(flips)} flips, pass"
        with _own_faults(setting), ticking(_passes(progress, at, done, len(flips))):
            scored, size = _scored(setting, flips[done:], size)
        journal.append(label, attack.name, scored)
        done += len(scored.records)
        yield Written(scored.records, scored.attacking, scored.scoring)
    progress(what, len(flips), len(flips))
    yield Written((), learning.cost(), Meter().cost())


def _scored(setting: Setting, flips: Sequence[Flip], size: int) -> tuple[Chunk, int]:
    """The first flips, as many as fit up to `size`; and how many that is.

    Raises:
        UserError: not even one fits.
    """
    while True:
        try:
            scored = score_chunk(setting, flips[:size])
            return rung_again(setting, flips[:size], scored), size
        except torch.OutOfMemoryError as error:
            if size <= 1:
                line = f"{who_ran_out(error)}one example does not fit the device's memory"
                raise UserError(line) from None
            size //= 2


def _passes(progress: Progress, at: str, done: int, total: int) -> Callable[[int], None]:
    """Tells which pass of a chunk the model makes: its steps, of which no search says how many."""
    return lambda number: progress(f"{at} {number}", done, total)


@contextmanager
def _own_faults(setting: Setting) -> Iterator[None]:
    """Turn what a member of a suite does wrong into `MemberError`."""
    try:
        yield
    except Exception as error:
        of_judge = isinstance(error, UserError) and error.kind not in ("", Attack.kind)
        if of_judge or not setting.in_suite:
            raise
        raise MemberError(
            str(error) if isinstance(error, UserError) else one_line(error)
        ) from error
