"""The figures of a row, added up again from its flips without the machinery of intervals."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from saebench_recovery.results.mismatch import Mismatch, differing
from saebench_recovery.schema import Facts, Mean, Rate, Record, Row
from saebench_recovery.scoring.measures import MEASURES, verdict

Summed = tuple[str, Rate | Mean, Sequence[float]]  # a figure by its place, and what it should say
SUMS = {Rate: ("n", "k"), Mean: ("n", "mean", "median", "max")}
BUDGET_ROUNDING = 1e-5  # relative: a perturbation that is clipped has its norm but for this


def figure_mismatches(row: Row, flips: Sequence[Record], facts: Facts) -> Iterator[Mismatch]:
    """Counts, means and largest values that the flips of a row do not have."""
    for measure in MEASURES:
        if measure.name not in row.measures:
            field, values = f"measures.{measure.name}", f"{len(flips)} values"
            yield from differing(field, None, values, task=row.task)
    budgets = [point.budget for point in row.curve.points]
    yield from differing("curve budgets", budgets, list(facts.curve_budgets), task=row.task)
    for field, stored, added_up in (*_figures(row, flips, facts), *_curve(row, flips)):
        kept = vars(stored)  # a model's own attributes take three times as long to look up
        # Of a mean of nothing `added_up` ends with the count.
        for name, found in zip(SUMS[type(stored)], added_up, strict=False):
            if kept[name] != found:
                yield from differing(f"{field}.{name}", kept[name], found, task=row.task)


def _figures(row: Row, flips: Sequence[Record], facts: Facts) -> Iterator[Summed]:
    several = facts.perturbation.kind == "several"
    measured = [record.measures for record in flips]
    for measure in MEASURES:
        if (stored := row.measures.get(measure.name)) is not None:
            mixed = measure.per_space and several
            known = [] if mixed else _known(measured, measure.name)
            yield f"measures.{measure.name}", stored, _added_up(stored, known)
    figures = [record.figures for record in flips]
    for name, mean in row.figures.items():
        yield f"figures.{name}", mean, _added_up(mean, _known(figures, name))
    for scope, drift in row.drift.items():
        of_scope = [found for record in flips if (found := record.drift.get(scope))]
        for name, mean in vars(drift).items():
            yield f"drift.{scope}.{name}", mean, _added_up(mean, _known(of_scope, name))


def _known(flips: Iterable[Mapping[str, float | None]], name: str) -> list[float]:
    """A figure of the flips on which it is defined."""
    return [value for of_flip in flips if (value := of_flip.get(name)) is not None]


def _curve(row: Row, flips: Sequence[Record]) -> Iterator[Summed]:
    # Where no wrong answer could be injected there is no verdict.
    controlled = [r for r in flips if r.measures.get("wrong_target") is not None]
    recovering = sorted(norm for r in flips if (norm := r.smallest_norm) is not None)
    injecting = sorted(norm for r in controlled if (norm := r.smallest_norm_wrong) is not None)
    for point in row.curve.points:
        most, field = point.budget * (1 + BUDGET_ROUNDING), f"curve.points.{point.budget:g}"
        inside = bisect_right(recovering, most), bisect_right(injecting, most)
        yield f"{field}.recovery", point.recovery, (len(flips), inside[0])
        yield f"{field}.wrong_target", point.wrong_target, (len(controlled), inside[1])
    tightest = sorted(
        limit for r in flips if (limit := r.tightest_limit) is not None and verdict(r, "recovery")
    )
    for limited in row.curve.drift:
        inside_limit = bisect_right(tightest, limited.limit)
        yield f"curve.drift.{limited.limit:g}", limited.recovery, (len(flips), inside_limit)


def _added_up(stored: Rate | Mean, known: Sequence[float]) -> Sequence[float]:
    """What a rate or mean of these values says, its interval aside; see `SUMS`."""
    if type(stored) is Rate:
        # A number is no verdict, whatever it would be taken for.
        return len(known), sum(known) if set(map(type, known)) <= {bool} else math.nan
    if not known:
        return (0,)
    return len(known), _mean(known), median(known), max(known)


def _mean(known: Sequence[float]) -> float:
    try:
        return math.fsum(known) / len(known)
    except OverflowError:  # such numbers no run finds
        return math.inf
