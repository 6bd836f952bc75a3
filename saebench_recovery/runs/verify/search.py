"""The search of a row made once more on some of its flips: did it look as hard as it says?

Evidence proves what a search found. That nothing was found it cannot prove: a search that returned
nothing at all leaves a row that replays to the last digit. So some flips are attacked again, by
this version's own attack, and what is brought back then is held to the records.

No two searches are the same to the last flip, as batches, machines and versions round otherwise.
What counts is therefore an exact sign test over the flips on which the two differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import comb

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import silent
from saebench_recovery.interfaces import Attack
from saebench_recovery.results.mismatch import Mismatch
from saebench_recovery.runs.verify.report import Findings
from saebench_recovery.schema import Facts, Record
from saebench_recovery.scoring.attack_and_score import CHANGED, MISLED, REPLACED
from saebench_recovery.scoring.evaluate import attacked
from saebench_recovery.scoring.journal import Unkept
from saebench_recovery.scoring.measures import gave_way
from saebench_recovery.scoring.suite import worst_case
from saebench_recovery.scoring.undisturbed import Undisturbed
from saebench_recovery.spec import RunSpec

SEARCHED = 16  # flips of a row at most: a search costs what many replays do
# Five that differ all one way are the fewest that a sign test tells apart: 1 in 32.
FEWEST = 5
# Of a small sample still so many, which are attacked in one chunk at about the cost of fewer: a
# row that hides what is there on 60 % of the flips is then found 9 times of 10, with 8 flips 6.
LEAST = 12
LEVEL = 0.05
OF_A_SEARCH = (REPLACED, MISLED, CHANGED)  # flags that no replay raises

Verdict = Callable[[Record], bool | None]


def _measure(name: str) -> Verdict:
    def of(record: Record) -> bool | None:
        value = record.measures.get(name)
        return None if value is None else bool(value)

    return of


@dataclass(frozen=True)
class Aspect:
    """A verdict that rests on a search; `proven` where evidence is stored of each that is true."""

    name: str
    of: Verdict
    control: bool = True
    proven: bool = True


ASPECTS = (
    Aspect("recovery inside the limits", gave_way, control=False),
    Aspect("recovery", _measure("recovery"), control=False),
    Aspect("wrong_target", _measure("wrong_target")),
    Aspect("wrong_target_reference", _measure("wrong_target_reference"), proven=False),
    Aspect("never_learned", _measure("never_learned")),
)


def drawn(ids: Collection[str], sample: int | None, seed: str) -> set[str]:
    """Those of a row's flips that are searched again; none where no test could tell."""
    count = min(len(ids), SEARCHED if sample is None else min(SEARCHED, max(sample, LEAST)))
    return set(random.Random(seed).sample(sorted(ids), count)) if count >= FEWEST else set()


def searched_again(
    seen: Undisturbed,
    attack: Attack,
    spec: RunSpec,
    facts: Facts,
    records: Sequence[Record],
    findings: Findings,
) -> int:
    """Attack the flips that were seen, and hold the stored records of their task to that.

    Members of a suite that failed in the run are tried like the others: that they failed is
    nothing that evidence proves either.

    Returns:
        How many flips were searched again; none where the search does not come through.
    """
    journal = Unkept()
    try:
        again = attacked(seen, attack, spec, journal, silent)
        found = [record for chunk in journal.every() for record in chunk.records]
        ids = {record.id for record in found}
        stored = [record for record in records if record.id in ids]
        pairs = {"": _by_id(worst_case(stored, facts.members), worst_case(found, again.members))}
    except UserError as error:
        findings.could_not_check(f"{facts.task} search", str(error))
        return 0
    for member, line in again.failures.items():
        if member not in facts.failures:
            findings.notes.append(f"{facts.task} search: {member} failed here; {line}")
    if len(facts.members) > 1:
        pairs |= {name: _by_id(_under(name, stored), _under(name, found)) for name in facts.members}
    for member, both in pairs.items():
        findings.add(_beaten(facts.task, member, both))
    findings.add(_raised(facts.task, records, found))
    return len(ids)


def _under(attack: str, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.attack == attack]


def _by_id(stored: Sequence[Record], found: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Stored and found records of each flip that has both."""
    others = {record.id: record for record in found}
    return [(record, others[record.id]) for record in stored if record.id in others]


def _beaten(task: str, member: str, pairs: Sequence[tuple[Record, Record]]) -> Iterator[Mismatch]:
    """What the repeated search brings about on significantly more flips than are stored.

    Of a member of a suite these are the controls, by which flags judge each member: what the
    suite recovers is the worst case. That less is found than is stored is luck, as evidence proves
    what is stored; only of the reference control there is none.
    """
    for aspect in ASPECTS:
        if member and not aspect.control:
            continue
        values = [(aspect.of(one), aspect.of(other)) for one, other in pairs]
        known = [pair for pair in values if None not in pair]
        more, fewer = known.count((False, True)), known.count((True, False))
        if _one_sided(more, fewer) < LEVEL or (
            not aspect.proven and _one_sided(fewer, more) < LEVEL
        ):
            yield Mismatch(
                task=task,
                field=f"search{f' by {member}' if member else ''}: {aspect.name}",
                stored=f"{sum(bool(one) for one, _ in known)} of {len(known)}",
                found=f"{sum(bool(other) for _, other in known)} of {len(known)}",
            )


def _one_sided(more: int, fewer: int) -> float:
    """How likely a fair coin falls at least so often on the side of `more`."""
    tosses = more + fewer
    return sum(comb(tosses, k) for k in range(more, tosses + 1)) / float(2**tosses)


def _raised(task: str, stored: Sequence[Record], found: Sequence[Record]) -> Iterator[Mismatch]:
    """Flags that the search raises again on some flip, and that no record of the task has."""
    for flag in OF_A_SEARCH:
        raised = [record.id for record in found if flag in record.flags]
        if raised and not any(flag in record.flags for record in stored):
            yield Mismatch(
                task=task,
                field="search: flags",
                stored="none",
                found=f"{flag} on {len(raised)} records, such as {raised[0]}",
            )
