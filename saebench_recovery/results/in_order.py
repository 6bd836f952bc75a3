"""The journal of tasks that were evaluated side by side, put in the order of the tasks.

So the files of a run are the same however its tasks were divided among processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from saebench_recovery.base.reading import read_bytes
from saebench_recovery.results.chunks import RunJournal
from saebench_recovery.results.packed import Packed
from saebench_recovery.results.replaced import replace_files
from saebench_recovery.results.store import RECORDS, TEXTS, unwritable

# A name with a dot, so that what a killed process leaves is cleared away.
MADE = ".in-order"


def in_order(journal: RunJournal, tasks: Sequence[str]) -> RunJournal:
    """The journal with its chunks task after task, those of one task as they came.

    Raises:
        UserError: the disk is full, or the folder has become unwritable.
    """
    ranks = {task: rank for rank, task in enumerate(tasks)}
    order = sorted(range(len(journal.chunks)), key=lambda n: ranks[journal.chunks[n].task])
    failed = sorted(journal.failures, key=lambda of: ranks[of[0]])
    if order == list(range(len(order))) and failed == list(journal.failures):
        return journal
    folder, made = journal.folder, journal.folder / MADE
    keeps_texts = (folder / TEXTS).exists()
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        ordered = RunJournal(made, keep_texts=keeps_texts)
        for packed in _packed(journal, order, keeps_texts=keeps_texts):
            ordered.keep(packed)
        for task, attack in failed:
            ordered.fail(task, attack, journal.failures[task, attack])
        replace_files(folder, made)
    except OSError as error:
        raise unwritable(folder, error) from None
    return RunJournal(folder, keep_texts=keeps_texts)


def _packed(journal: RunJournal, order: Sequence[int], *, keeps_texts: bool) -> Iterator[Packed]:
    folder, chunks = journal.folder, journal.chunks
    records = read_bytes(folder / RECORDS)
    texts = read_bytes(folder / TEXTS) if keeps_texts else b""
    for number in order:
        chunk = chunks[number]
        begin = chunks[number - 1].records_end if number else 0
        texts_begin = chunks[number - 1].texts_end if number else 0
        yield Packed(
            task=chunk.task,
            attack=chunk.attack,
            records=records[begin : chunk.records_end],
            texts=texts[texts_begin : chunk.texts_end],
            evidence=read_bytes(folder / chunk.evidence),
            attacking=chunk.attacking,
            scoring=chunk.scoring,
        )
