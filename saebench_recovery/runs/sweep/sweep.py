"""A sweep: cells that are complete are read, the others carried out, and what fails tried again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.sweep.cells import grouped
from saebench_recovery.runs.sweep.engine import Engine, Outcome

ATTEMPTS = 2


def sweep(
    plans: Sequence[Plan], engine: Engine, workers: int, finished: Callable[[Outcome], None]
) -> dict[str, Outcome]:
    """The outcome of every cell, by identity.

    `finished` is told of each cell once: when it is complete, or has failed for the last time.
    """
    final: dict[str, Outcome] = {}
    left = list(plans)
    for number in range(1, ATTEMPTS + 1):
        failed = set()
        for outcome in engine.outcomes(grouped(left, workers)) if left else ():
            if outcome.error is not None and number < ATTEMPTS:
                failed.add(outcome.identity)
                continue
            final[outcome.identity] = outcome
            finished(outcome)
        left = [plan for plan in left if plan.identity in failed]
    return final
