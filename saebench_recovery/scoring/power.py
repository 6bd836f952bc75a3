"""How many flips it takes to tell two rates apart."""

from __future__ import annotations

import math

from scipy.special import ndtri

LEVEL = 0.05
POWER = 0.8


def flips_to_separate(p1: float, p2: float, design_effect: float = 1.0) -> int | None:
    """Flips in each of two runs that show their rates to differ, in 80 % of cases at level 0.05.

    The normal approximation for two independent proportions, two-sided (Fleiss, Levin and Paik,
    "Statistical Methods for Rates and Proportions", 2003, section 4.2, without continuity
    correction), times the design effect of clusters. Runs on the same flips usually need fewer, as
    their outcomes go together. None where the rates are equal: no number is enough.

    Raises:
        ValueError: a rate outside 0 to 1, or a design effect that is not positive.
    """
    if not (0 <= p1 <= 1 and 0 <= p2 <= 1 and design_effect > 0):
        raise ValueError("rates must be 0 to 1, and a design effect positive")
    if p1 == p2:
        return None
    middle = (p1 + p2) / 2
    under_equality = ndtri(1 - LEVEL / 2) * math.sqrt(2 * middle * (1 - middle))
    under_difference = ndtri(POWER) * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    needed = ((under_equality + under_difference) / (p1 - p2)) ** 2 * design_effect
    return math.ceil(float(needed))
