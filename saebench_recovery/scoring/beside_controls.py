"""What a row's recovery is beside its controls, for the flags. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_recovery.schema import Facts, Rate, Record, Row

CONTROLS = ("random-direction",)  # attacks that are there to be compared with, and prove nothing
WEAKER = 0.25  # of the flips: an attack of its own kind rarely injects so much less


def reaches(row: Row, control: float | None) -> bool:
    """Whether a control succeeds at least as often as the attack recovers."""
    recovery = row.recovery.rate
    if row.attack in CONTROLS or control is None or recovery is None:
        return False
    return control >= recovery > 0


def injection(row: Row) -> float | None:
    """How often a wrong answer was injected, by the attack or the reference: what did better."""
    both = (row.rate("wrong_target").rate, row.rate("wrong_target_reference").rate)
    return max((rate for rate in both if rate is not None), default=None)


def brought(row: Row) -> float | None:
    """How often the attack brought an answer that the model cannot know."""
    found = row.measures.get("never_learned")
    return found.rate if isinstance(found, Rate) else None


def control_weakened(row: Row, records: Sequence[Record], facts: Facts) -> bool:
    """Whether the attack injects far less than it recovers and than the reference injects.

    Of a few flips one more or less says nothing: the intervals have to lie apart.
    """
    own = row.rate("wrong_target")
    beside = (row.recovery, row.rate("wrong_target_reference"))
    if row.attack in CONTROLS or own.rate is None or own.high is None:
        return False
    far = all((other.rate or 0) > own.rate + WEAKER for other in beside)
    return far and all((other.low or 0) > own.high for other in beside)
