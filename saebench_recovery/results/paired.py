"""Differences between two runs, flip by flip, as `scoring.paired` tests them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from saebench_recovery.schema import Count, Finite, Share, Stored
from saebench_recovery.scoring.paired import beside
from saebench_recovery.scoring.statistics import Values


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


def paired_differences(
    measure: str,
    first: Values,
    runs: Sequence[str],
    others: Sequence[Values],
    clusters: Sequence[str],
) -> list[PairedDifference]:
    """Each of several runs on the flips on which the measure is defined in it and in the first.

    Where there are none, it is left out.
    """
    found = zip(runs, beside(first, others, clusters), strict=True)
    return [
        PairedDifference(
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
        for run, result in found
        if result is not None
    ]
