"""What a comparison shows, as lines and cells of text, whatever they are printed in."""

from __future__ import annotations

from collections.abc import Iterator

from saebench_recovery.results.compare import Comparison
from saebench_recovery.results.report.numbers import estimate, number
from saebench_recovery.scoring import measures
from saebench_recovery.scoring.paired import LEAST_CLUSTERS

DRIFT = "drift, relative"
DIFFERENCE_HEADS = ("", "of", "difference", "1 >", "1 <", "p", "by")


def heading(comparison: Comparison) -> str:
    """How many flips, and at which cost."""
    at = "" if comparison.flops is None else f", at {comparison.flops:.2g} FLOPs on each"
    return f"{comparison.flips} flips in common{at}"


def run_lines(comparison: Comparison) -> list[str]:
    """A line for every run; columns go by their numbers."""
    return [
        f"{number}  {run.name}, run {run.identity}"
        + (f"; flags: {', '.join(run.flags)}" if run.flags else "")
        for number, run in enumerate(comparison.runs, 1)
    ]


def figures(comparison: Comparison) -> Iterator[list[str]]:
    """Measures down, runs across; those that no run has are left out."""
    runs = comparison.runs
    for measure in measures.MEASURES:
        if any(measure.name in run.measures for run in runs):
            yield [measure.title, *(estimate(run.measures.get(measure.name)) for run in runs)]
    if any(run.drift is not None for run in runs):
        yield [DRIFT, *(number(run.drift.mean if run.drift else None, ".2g") for run in runs)]
    yield ["FLOPs on a flip", *(number(run.flops.mean, ".2g") for run in runs)]


def differences(comparison: Comparison) -> Iterator[list[str]]:
    """Every run beside the first one, on every measure; see `DIFFERENCE_HEADS`."""
    titles = {measure.name: measure.title for measure in measures.MEASURES} | {"drift": DRIFT}
    number_of = {run.name: str(i) for i, run in enumerate(comparison.runs, 1)}
    for pair in comparison.differences:
        interval = "" if pair.low is None else f" [{pair.low:+.2f}, {pair.high:+.2f}]"
        yield [
            f"{number_of[pair.run]} - 1",
            titles.get(pair.measure, pair.measure),
            f"{pair.difference:+.2f}{interval}",
            str(pair.first_larger),
            str(pair.this_larger),
            f"{pair.p_value:.2g}",
            pair.method,
        ]


def remarks(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What is said below the tables: a word in bold and what follows it."""
    for line in comparison.verdicts:
        yield "verdict", line
    if comparison.clusters < LEAST_CLUSTERS:
        yield (
            "few source items",
            f"with {comparison.clusters} of them no p-value can reach 0.05",
        )
    for line in comparison.unequal:
        yield "unequal", line
