"""Differences between two runs, flip by flip.

The interval resamples source items, and the p-value is that of McNemar's exact test (for a number,
of the sign test, which is the same on pairs that differ); it takes flips for independent.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from scipy.stats import binomtest

from saebench_recovery.schema import Count, Finite, Share, Stored
from saebench_recovery.scoring import statistics
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
    p_value: Share = Field(
        description="exact sign test, two-sided; on a rate that is McNemar's exact test"
    )


def paired_difference(
    measure: str, run: str, first: Values, this: Values, clusters: Sequence[str]
) -> PairedDifference | None:
    """Two runs on the flips on which the measure is defined in both; None if it never is."""
    gaps = [
        None if a is None or b is None else float(b) - float(a)
        for a, b in zip(first, this, strict=True)
    ]
    gap = statistics.mean(gaps, clusters)
    if gap.mean is None:
        return None
    falls, rises = sum((g or 0) < 0 for g in gaps), sum((g or 0) > 0 for g in gaps)
    return PairedDifference(
        measure=measure,
        run=run,
        difference=gap.mean,
        low=gap.low,
        high=gap.high,
        first_larger=falls,
        this_larger=rises,
        p_value=float(binomtest(rises, rises + falls).pvalue) if rises + falls else 1.0,
    )
