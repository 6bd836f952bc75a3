"""The figures of a row, added up again from its flips without the machinery of intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from saebench_recovery.results.mismatch import Mismatch, differing
from saebench_recovery.schema import Drift, Facts, Mean, Rate, Record, Row
from saebench_recovery.scoring.measures import MEASURES, verdict
from saebench_recovery.scoring.statistics import Values

Summed = tuple[str, Rate | Mean, Values]  # a figure by its place, and the flips' own values
ROUNDING = 1e-9  # relative, of a mean that is added up in another order
BUDGET_ROUNDING = 1e-5  # relative: a perturbation that is clipped has its norm but for this


def figure_mismatches(row: Row, flips: Sequence[Record], facts: Facts) -> Iterator[Mismatch]:
    """Counts, means and largest values that the flips of a row do not have."""
    for measure in MEASURES:
        if measure.name not in row.measures:
            field, values = f"measures.{measure.name}", f"{len(flips)} values"
            yield from differing(field, None, values, task=row.task)
    budgets = [point.budget for point in row.curve.points]
    yield from differing("curve budgets", budgets, list(facts.curve_budgets), task=row.task)
    for field, stored, of_flips in (*_figures(row, flips, facts), *_curve(row, flips)):
        known = [value for value in of_flips if value is not None]
        for name, found in _added_up(stored, known).items():
            held = getattr(stored, name)
            if held != found and not _rounded(held, found):
                yield from differing(f"{field}.{name}", held, found, task=row.task)


def _figures(row: Row, flips: Sequence[Record], facts: Facts) -> Iterator[Summed]:
    several = facts.perturbation.kind == "several"
    for measure in MEASURES:
        if (stored := row.measures.get(measure.name)) is not None:
            mixed = measure.per_space and several
            values = [None if mixed else record.measures.get(measure.name) for record in flips]
            yield f"measures.{measure.name}", stored, values
    for name, mean in row.figures.items():
        yield f"figures.{name}", mean, [record.figures.get(name) for record in flips]
    for scope, drift in row.drift.items():
        of_scope = [record.drift.get(scope, {}) for record in flips]
        for name in Drift.model_fields:
            field, values = f"drift.{scope}.{name}", [of_flip.get(name) for of_flip in of_scope]
            yield field, getattr(drift, name), values


def _curve(row: Row, flips: Sequence[Record]) -> Iterator[Summed]:
    # Where no wrong answer could be injected there is no verdict.
    controlled = [r for r in flips if r.measures.get("wrong_target") is not None]
    recovering = [record.smallest_norm for record in flips]
    injecting = [record.smallest_norm_wrong for record in controlled]
    for point in row.curve.points:
        most, field = point.budget * (1 + BUDGET_ROUNDING), f"curve.points.{point.budget:g}"
        for name, norms in (("recovery", recovering), ("wrong_target", injecting)):
            inside = [norm is not None and norm <= most for norm in norms]
            yield f"{field}.{name}", getattr(point, name), inside
    tightest = [r.tightest_limit if verdict(r, "recovery") else None for r in flips]
    for limited in row.curve.drift:
        inside = [limit is not None and limit <= limited.limit for limit in tightest]
        yield f"curve.drift.{limited.limit:g}", limited.recovery, inside


def _added_up(stored: Rate | Mean, known: Sequence[bool | float]) -> dict[str, float]:
    """What a rate or mean of these values says, its interval aside."""
    if isinstance(stored, Rate):
        return {"n": len(known), "k": sum(map(bool, known))}
    if not known:
        return {"n": 0}
    mean = math.fsum(known) / len(known)
    return {"n": len(known), "mean": mean, "median": median(known), "max": max(known)}


def _rounded(held: float | None, found: float) -> bool:
    """Whether two means differ by rounding alone; counts are whole and have none."""
    return (
        held is not None
        and isinstance(found, float)
        and math.isclose(held, found, rel_tol=ROUNDING, abs_tol=1e-12)
    )
