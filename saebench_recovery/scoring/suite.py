"""The worst case over the attacks of a suite: each is tried on what those before left unbroken.

A single attack is a suite of one. A flip is broken when it recovered inside the limits, or at all
where none binds. That one member broke it says nothing of how near to the clean output another
would have come: it is not tried on it any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from saebench_recovery.base.errors import UserError
from saebench_recovery.schema import Facts, Record, SuiteMember
from saebench_recovery.scoring.measures import MEASURES, gave_way, verdict

OF_ANY = tuple(measure.name for measure in MEASURES if measure.needs_recovery)


def unbroken(ids: Sequence[str], records: Iterable[Record]) -> list[str]:
    """The flips, of `ids`, that no record shows as broken."""
    broken = {record.id for record in records if gave_way(record)}
    return [id for id in ids if id not in broken]


def worst_case(records: Iterable[Record], members: Sequence[str]) -> list[Record]:
    """Each flip's record under the member that did best on it, in the order of their ids.

    Best is a recovery inside the limits, then any recovery; ties go to the earlier member. Verdicts
    that need a recovery are true where any member's are, whichever did best. What a flip has cost
    is the sum over all members that were tried on it, and `flops_recovers` counts what the members
    before the best one had spent.

    Raises:
        UserError: two records of one flip under one member, or a record of another attack.
    """
    by_flip: dict[str, dict[str, Record]] = {}
    for record in records:
        tried = by_flip.setdefault(record.id, {})
        if record.attack not in members or record.attack in tried:
            raise UserError(
                f"task {record.task!r} has a second record of example {record.id!r} under "
                f"attack {record.attack!r}, or none of the run's attacks ({', '.join(members)}) "
                "is called that"
            )
        tried[record.attack] = record
    return [
        _best([by_flip[id][member] for member in members if member in by_flip[id]])
        for id in sorted(by_flip)
    ]


def _best(tried: Sequence[Record]) -> Record:
    """The best of one flip's records, which are in the order of the members' turns."""
    if len(tried) == 1:
        return tried[0]
    best = max(tried, key=lambda r: (gave_way(r), verdict(r, "recovery")))
    reached_by_any = {name: True for name in OF_ANY if any(verdict(r, name) for r in tried)}
    before = sum(record.flops for record in tried[: tried.index(best)])
    reached = best.flops_recovers
    return best.model_copy(
        update={
            "measures": {**best.measures, **reached_by_any},
            "flops": sum(record.flops for record in tried),
            "flops_recovers": None if reached is None else before + reached,
        }
    )


def is_suite(facts: Facts) -> bool:
    """Whether the attack stands for others, be it for one alone on this task."""
    return facts.members != (facts.attack,)


def standings(facts: Facts, records: Iterable[Record]) -> tuple[SuiteMember, ...]:
    """What each member of a suite was tried on and broke; those with nothing left are left out."""
    if not is_suite(facts):
        return ()
    tried: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    for record in records:
        tried[record.attack] += 1
        broken[record.attack] += gave_way(record)
    return tuple(
        SuiteMember(
            attack=member,
            tried=tried[member],
            broken=broken[member],
            flops=flops,
            failed=facts.failures.get(member, ""),
        )
        for member, flops in zip(facts.members, facts.member_flops, strict=True)
        if tried[member] or member in facts.failures or member == facts.members[0]
    )
