"""Differences between two runs, flip by flip, as `scoring.paired` tests them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from saebench_recovery.schema import Count, Finite, Share, Stored
from saebench_recovery.scoring.paired import paired
from saebench_recovery.scoring.readings import Values


class PairedDifference(Stored):
    """A run beside the first one, on one measure."""

    measure: str = Field(description="a name in `scoring.measures`, or drift")
    run: str = Field(description="name of the run that is set beside the first one")
    difference: Finite = Field(description="of the means, this run's less the first one's")
    low: Finite | None
    high: Finite | None
    first_larger: Count = Field(description="flips on which the first run's is larger")
    this_larger: Count = Field(description="of a rate: flips on which this run alone has it")
    p_value: Share = Field(description="two-sided, by `method`; source items are what may vary")
    method: str


def paired_difference(
    measure: str, run: str, first: Values, this: Values, clusters: Sequence[str]
) -> PairedDifference | None:
    """Two runs on the flips on which the measure is defined in both; None if it never is."""
    result = paired(first, this, clusters)
    if result is None:
        return None
    return PairedDifference(
        measure=measure,
        run=run,
        difference=result.difference,
        low=result.low,
        high=result.high,
        first_larger=result.first_larger,
        this_larger=result.second_larger,
        p_value=result.p_value,
        method=result.method,
    )
