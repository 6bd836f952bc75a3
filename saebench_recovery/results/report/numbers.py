"""Numbers as text, the same in tables and on pages."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_recovery.results.summary import Interval, interval
from saebench_recovery.schema import Mean, Rate

NONE = "-"


def number(value: float | None, precision: str = ".3g") -> str:
    """A number in a format such as ".2f"; "-" where there is none."""
    return NONE if value is None else format(value, precision)


def mean_number(values: Sequence[float | None], precision: str = ".3g") -> str:
    """The mean of the numbers among the values; "-" without any."""
    known = [value for value in values if value is not None]
    return number(sum(known) / len(known) if known else None, precision)


def brief(value: Interval | None) -> str:
    """Such as ".95 [.88 .98]"; "-" where there is nothing to count."""
    if value is None:
        return NONE
    centre, low, high = (_two_digits(x) for x in (value.centre, value.low, value.high))
    return f"{centre} [{low} {high}]"


def _two_digits(value: float) -> str:
    """A share without its leading zero; 1.0 is as wide as .99."""
    rounded = f"{value:.2f}"
    return rounded.removeprefix("0") if value < 0.995 else f"{value:.1f}"


def estimate(value: Interval | Rate | Mean | None) -> str:
    """Such as "0.95 [0.88, 0.98]"; "-" where there is nothing to count.

    rich takes a bracket for markup only before a letter, so this needs no escape in its tables.
    """
    known = value if isinstance(value, Interval) or value is None else interval(value)
    return NONE if known is None else f"{known.centre:.2f} [{known.low:.2f}, {known.high:.2f}]"
