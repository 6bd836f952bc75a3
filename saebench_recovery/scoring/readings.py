"""What is read off single records, for rows and for comparisons alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from saebench_recovery.schema import Mean, PerturbationKind, Rate, Record
from saebench_recovery.scoring import statistics
from saebench_recovery.scoring.measures import Measure, verdict
from saebench_recovery.scoring.statistics import Values


def recovered_by(record: Record, flops: float) -> bool:
    """Whether the flip recovered, and a search that had spent so much had found as much."""
    reached = math.inf if record.flops_recovers is None else record.flops_recovers
    return statistics.found_after(
        flops, recovered=verdict(record, "recovery"), reached=reached, spent=record.flops
    )


def has_injection(record: Record) -> bool:
    """Whether a wrong answer could have been injected (`scoring.reach`)."""
    return record.measures.get("wrong_target") is not None


def values(measure: Measure, records: Sequence[Record], perturbation: PerturbationKind) -> Values:
    """Each flip's own value, None where it is undefined.

    Norms of embeddings and of residuals, and tokens without any, make no one distribution.
    """
    if measure.per_space and perturbation.kind == "several":
        return [None] * len(records)
    return [record.measures.get(measure.name) for record in records]


def summary(
    measure: Measure, values: Values, clusters: Sequence[str], repeats: int = 1
) -> Rate | Mean:
    """A measure's rate or mean over the flips on which it is defined; see `statistics.rate`."""
    return summaries(measure, [values], clusters, repeats)[0]


def summaries(
    measure: Measure, of_runs: Sequence[Values], clusters: Sequence[str], repeats: int = 1
) -> Sequence[Rate | Mean]:
    """The same of several runs on the same flips."""
    if measure.kind == "rate":
        return statistics.rates(of_runs, clusters, repeats)
    return [within(measure.bounds, mean) for mean in statistics.means(of_runs, clusters)]


def within(bounds: tuple[float, float], mean: Mean) -> Mean:
    """The mean of a bounded figure, its interval cut where no mean can be.

    The interval of a few clusters is wide and knows of no bounds; what is cut off could not hold
    the mean, so the interval is right as often as before.
    """
    lowest, highest = bounds
    if mean.low is None or mean.high is None:
        return mean
    cut = {"low": max(mean.low, lowest), "high": min(mean.high, highest)}
    return mean.model_copy(update=cut)
