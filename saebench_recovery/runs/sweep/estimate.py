"""What cells are going to cost, from a few flips of cells that stand for others."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.shared import Shared
from saebench_recovery.runs.sweep.cells import Groups, shared_part, shared_search
from saebench_recovery.scoring.journal import Unkept

FEW = 8  # flips
# Cells that differ in these alone are taken to cost the same.
ALIKE = {"defense", "defense_config", "seed"}


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products, and seconds of one process."""

    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.seconds + other.seconds)

    def times(self, factor: float) -> Work:
        return Work(self.flops * factor, self.seconds * factor)


@dataclass(frozen=True)
class Estimate:
    """The work of a cell: `before` the attack, which is done once for all that share it, and then.

    `memory` is the most that a process has held so far: bytes of an accelerator or, where there is
    none, of the process itself.
    """

    before: Work
    attack: Work
    memory: int


def estimates(groups: Groups, progress: Progress) -> dict[str, Estimate]:
    """The estimate of every cell, by identity; there is none where its stand-in fails.

    One cell of all that differ only in defense and seed is carried out on up to `FEW` flips, of
    which nothing is kept. The time of its other flips is taken to be as long.
    """
    shared, known, found = Shared(), dict[str, Estimate | None](), dict[str, Estimate]()
    for group in groups:
        for plan in group:
            kind = canonical_json(plan.spec.model_dump(mode="json", exclude=ALIKE))
            if kind not in known:
                known[kind] = _tried(plan.fresh(), shared, progress)
            if (estimate := known[kind]) is not None:
                found[plan.identity] = estimate
    return found


def in_all(groups: Groups, known: Mapping[str, Estimate]) -> Work:
    """The work of all cells for which there is an estimate, shared parts and searches once."""
    total, counted, searched = Work(), set[object](), set[object]()
    for group in groups:
        for plan in group:
            if (estimate := known.get(plan.identity)) is None:
                continue
            if (search := shared_search(plan)) not in searched:
                searched.add(search)
                total += estimate.attack
            if (part := shared_part(plan)) not in counted:
                counted.add(part)
                total += estimate.before
    return total


def _tried(plan: Plan, shared: Shared, progress: Progress) -> Estimate | None:
    from saebench_recovery.scoring.evaluate import attacked  # torch, which a listing does without

    before, attack, peaks = Work(), Work(), [0]
    try:
        for label, own in plan.matchups.items():
            seen = shared.undisturbed(plan, label, progress)
            before += Work(seen.cost.flops, seen.cost.seconds)
            few = replace(seen, flips=seen.flips[:FEW])
            if not few.flips:
                continue
            begun, journal = time.monotonic(), Unkept()
            compute = attacked(few, own.attack, plan.spec, journal, progress).compute
            flops = compute.attack.flops + compute.scoring.flops - seen.cost.flops
            of_flips = _of_flips(journal)
            others = len(seen.flips) / len(few.flips) - 1
            attack += Work(flops, time.monotonic() - begun) + of_flips.times(others)
            peaks += [c.peak_bytes or 0 for c in (compute.attack, compute.scoring)]
    except UserError:  # said when the cell is run
        return None
    return Estimate(before, attack, max(peaks) or _resident())


def _resident() -> int:
    """The most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _of_flips(journal: Unkept) -> Work:
    """What was spent on flips, and not on getting ready for them."""
    costs = [cost for chunk in journal.every() for cost in (chunk.attacking, chunk.scoring)]
    return Work(sum(cost.flops for cost in costs), sum(cost.seconds for cost in costs))
