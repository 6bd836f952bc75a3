"""Whether an attack kept the defended latents where it says that it holds them."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_recovery.schema import Facts, Record, Row
from saebench_recovery.scoring.measures import verdict

# Relative drift above which a constraint that is exact by construction is called broken. A set
# that is made for one residual meets another where passes are rounded to less than float32.
EXACT_DRIFT, ROUNDED_EXACT_DRIFT = 1e-3, 1e-2
OUTSIDE = 0.25  # of the flips: few recoveries past the limits change no rank


def _first_order(record: Record) -> bool:
    return record.constraint.kind == "first-order"


def holds_to_first_order(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    return any(map(_first_order, records))


def constraint_broken(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    """Whether latents that are held exactly moved all the same."""
    limit = ROUNDED_EXACT_DRIFT if facts.rounded else EXACT_DRIFT
    exact = [record for record in records if record.constraint.kind == "exact"]
    return any(_moved(record) > limit for record in exact)


def constraint_lost(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    """Where the defense itself moves its latents, no search to first order stays inside.

    Of a suite, another member may: then nothing is lost.
    """
    if row.recovery.k - row.constrained.k <= OUTSIDE * row.recovery.n:
        return False
    recovered = [r for r in records if _first_order(r) and verdict(r, "recovery")]
    outside = sum(record.measures.get("constrained") is False for record in recovered)
    return outside > max(OUTSIDE * len(records), len(recovered) / 2)


def constraint_vacuous(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    if facts.perturbation.of_weights:
        return False
    bound = sum(record.measures.get("constrained") is not None for record in records)
    return 2 * bound < len(records)


def _moved(record: Record) -> float:
    """How far held latents moved: their activations, and the readings of silent ones below them."""
    drift = record.drift.get("perturbed", {})
    return max(drift.get("relative_l2") or 0, drift.get("preactivation_relative") or 0)
