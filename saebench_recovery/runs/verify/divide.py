"""The pieces of a verification divided among processes: what is found does not depend on that."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from saebench_recovery.base.progress import Progress
from saebench_recovery.results.consistency import StoredRun
from saebench_recovery.runs.processes import Death, Processes, Tell
from saebench_recovery.runs.sharing import Sharing
from saebench_recovery.runs.verify.evidence import read_flips, unlogged
from saebench_recovery.runs.verify.recompute import Piece, Recomputation, Recomputed
from saebench_recovery.runs.verify.report import Findings

Group = Sequence[Piece]


def recomputed(
    work: Recomputation, sharing: Sharing, findings: Findings, progress: Progress
) -> tuple[int, int]:
    """Recompute the tasks that `work` chose flips of: how many were replayed and searched again.

    Evidence of other tasks is held to the log all the same.
    """
    stored = work.stored
    groups = [_pieces(task, stored) for task in work.chosen]
    total = sum(map(len, (*work.chosen.values(), *work.again.values())))
    done, searched = set[tuple[str, str]](), 0
    answers: dict[Piece, Recomputed] = {}
    progress("recomputing", 0, total)
    for piece, answer in _answers(work, groups, sharing):
        answers[piece] = answer
        done |= {(piece.task, flip) for flip in answer.ids}
        searched += answer.searched
        what = "searching again" if _searches_next(groups, answers) else "recomputing"
        progress(what, len(done) + searched, total)
    for group in groups:
        for piece in group:
            findings.extend(answers[piece].findings)
    for number, (chunk, _) in enumerate(stored.chunks):
        if chunk.task not in work.chosen:
            read_flips(stored, number, findings)
    unlogged(stored, findings)
    return len(done), searched


def _pieces(task: str, stored: StoredRun) -> Group:
    """All of a task: they share what is fitted, and so are of one process.

    The search comes last, as plugins may learn from it.
    """
    of_task = [n for n, (chunk, _) in enumerate(stored.chunks) if chunk.task == task]
    return [Piece(task), *(Piece(task, number) for number in of_task), Piece(task, search=True)]


def _searches_next(groups: Sequence[Group], answers: Collection[Piece]) -> bool:
    """Whether of some task nothing but the search is left."""
    left = ([piece for piece in group if piece not in answers] for group in groups)
    return any(len(pieces) == 1 and pieces[0].search for pieces in left)


def _answers(
    work: Recomputation, groups: Sequence[Group], sharing: Sharing
) -> Iterator[tuple[Piece, Recomputed]]:
    flips = sum(map(len, work.chosen.values()))
    places = sharing.places(
        "auto", groups=len(groups), flips=flips, loaded_bytes=_bytes(work.stored)
    )
    if not places:
        for group in groups:
            for piece in group:
                yield piece, work(piece)
        return
    facts = work.stored.facts

    def seconds(group: Group) -> float:
        task = group[0].task
        return facts[task].compute.scoring.seconds if task in facts else 0.0

    begin = partial(_begun, sharing.prepare(), work)
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
    prepare: Callable[[], None], work: Recomputation, tell: Tell
) -> Callable[[Piece], Recomputed]:
    """What a process is to know before its first piece."""
    prepare()
    return work


def _bytes(stored: StoredRun) -> int:
    """What a process loads: the model twice, once for each engine, and what is beside it."""
    computes = [facts.compute for facts in stored.state.facts]
    weights = max((c.model_bytes or 0 for c in computes), default=0)
    return 2 * weights + max((c.dictionary_bytes or 0 for c in computes), default=0)
