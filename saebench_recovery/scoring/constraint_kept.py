"""Whether an attack kept the defended latents where it says that it holds them."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_recovery.schema import Facts, Record, Row
from saebench_recovery.scoring.measures import verdict

# Relative drift above which a constraint that is exact by construction is called broken. A set
# that is made for one residual meets another where passes are rounded to less than float32.
EXACT_DRIFT, ROUNDED_EXACT_DRIFT = 1e-3, 1e-2
OUTSIDE = 0.25  # of the flips: few recoveries past the limits change no rank


def _moved(record: Record, facts: Facts) -> bool:
    """Whether latents that are held exactly moved all the same."""
    limit = ROUNDED_EXACT_DRIFT if facts.rounded else EXACT_DRIFT
    exact = record.constraint.kind == "exact"
    return exact and (_relative_drift(record, "perturbed") or 0) > limit


def _first_order(record: Record, facts: Facts) -> bool:
    """Latents that are declared and not held may come on: what the defense then does moves others.

    Until one does, those that are held stay exactly where they are.
    """
    some_held = facts.held != facts.features
    return record.constraint.kind == "first-order" or (some_held and _moved(record, facts))


def holds_to_first_order(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    return any(_first_order(record, facts) for record in records)


def constraint_broken(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    return facts.held == facts.features and any(_moved(record, facts) for record in records)


def constraint_lost(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    """Where the defense itself moves its latents, no search to first order stays inside.

    Of a suite, another member may: then nothing is lost.
    """
    if row.recovery.k - row.constrained.k <= OUTSIDE * row.recovery.n:
        return False
    recovered = [r for r in records if _first_order(r, facts) and verdict(r, "recovery")]
    outside = sum(record.measures.get("constrained") is False for record in recovered)
    return outside > max(OUTSIDE * len(records), len(recovered) / 2)


def constraint_vacuous(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    if facts.perturbation.of_weights:
        return False
    bound = sum(record.measures.get("constrained") is not None for record in records)
    return 2 * bound < len(records)


def _relative_drift(record: Record, scope: str) -> float | None:
    return record.drift.get(scope, {}).get("relative_l2")
