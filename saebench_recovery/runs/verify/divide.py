"""The pieces of a verification divided among processes: what is found does not depend on that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from saebench_recovery import registry
from saebench_recovery.base import named_code
from saebench_recovery.base.progress import Progress
from saebench_recovery.results.consistency import StoredRun
from saebench_recovery.runs.processes import Death, Environment, Processes, environments
from saebench_recovery.runs.verify.evidence import read_flips, unlogged
from saebench_recovery.runs.verify.recompute import Piece, Recomputation, Recomputed
from saebench_recovery.runs.verify.report import Findings

FLIPS_EACH = 32  # that are worth a process: it imports and loads for longer than it replays fewer
PROCESS_BYTES = 2**30  # of memory beside the models: torch, transformers, activations

Group = Sequence[Piece]


@dataclass(frozen=True)
class Sharing:
    """Among how many processes work is divided, and the plugin files that each of them imports.

    `jobs` None is as many as there is work, cores and memory for.
    """

    jobs: int | None = 1
    plugins: Sequence[str | Path] = ()


def recomputed(
    work: Recomputation, sharing: Sharing, findings: Findings, progress: Progress
) -> int:
    """Recompute the tasks that `work` chose flips of; how many were replayed.

    Evidence of other tasks is held to the log all the same.
    """
    stored = work.stored
    groups = [_pieces(task, stored) for task in work.chosen]
    total, done = sum(map(len, work.chosen.values())), set[tuple[str, str]]()
    answers: dict[Piece, Recomputed] = {}
    progress("recomputing", 0, total)
    for piece, answer in _answers(work, groups, sharing):
        answers[piece] = answer
        done |= {(piece.task, flip) for flip in answer.ids}
        progress("recomputing", len(done), total)
    for group in groups:
        for piece in group:
            findings.extend(answers[piece].findings)
    for number, (chunk, _) in enumerate(stored.chunks):
        if chunk.task not in work.chosen:
            read_flips(stored, number, findings)
    unlogged(stored, findings)
    return len(done)


def _pieces(task: str, stored: StoredRun) -> Group:
    """All of a task: they share what is fitted, and so are of one process."""
    of_task = [n for n, (chunk, _) in enumerate(stored.chunks) if chunk.task == task]
    return [Piece(task), *(Piece(task, number) for number in of_task)]


def _answers(
    work: Recomputation, groups: Sequence[Group], sharing: Sharing
) -> Iterator[tuple[Piece, Recomputed]]:
    places = _places(work, len(groups), sharing.jobs)
    if len(places) < 2:
        for group in groups:
            for piece in group:
                yield piece, work(piece)
        return
    facts = work.stored.facts

    def seconds(group: Group) -> float:
        task = group[0].task
        return facts[task].compute.scoring.seconds if task in facts else 0.0

    begin = partial(_begun, tuple(sharing.plugins), named_code.allowed(), work)
    each = Processes[Piece, Recomputed](places, begin)
    # What takes longest comes first, so that it is not waited for alone.
    for piece, answer in each.answers(sorted(groups, key=seconds, reverse=True)):
        if isinstance(answer, Death):
            findings = Findings()
            why = f"its process ended ({answer.how}); if memory is short, try fewer --jobs"
            findings.could_not_check(piece.task, why)
            yield piece, Recomputed(findings)
        else:
            yield piece, answer


def _begun(
    plugins: Sequence[str | Path], allowed: frozenset[str], work: Recomputation
) -> Callable[[Piece], Recomputed]:
    """What a process is to know before its first piece."""
    for file in plugins:
        registry.load_plugin_file(file)
    for name in allowed:
        named_code.allow(name)
    return work


def _places(work: Recomputation, groups: int, jobs: int | None) -> list[Environment]:
    """What each process finds in its environment; of a single one nothing is asked."""
    if groups < 2 or jobs == 1:
        return []
    count = jobs or len(environments("auto", None))
    if jobs is None:
        worth = sum(map(len, work.chosen.values())) // FLIPS_EACH
        count = min(count, worth, _memory() // 2 // _bytes(work.stored))
    return environments("auto", min(count, groups)) if count else []


def _bytes(stored: StoredRun) -> int:
    """Memory that a process takes: the model twice, once for each engine, and what is beside it."""
    computes = [facts.compute for facts in stored.state.facts]
    weights = max((c.model_bytes or 0 for c in computes), default=0)
    return PROCESS_BYTES + 2 * weights + max((c.dictionary_bytes or 0 for c in computes), default=0)


def _memory() -> int:
    """Bytes of the machine's memory; 0 where the system does not tell."""
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
