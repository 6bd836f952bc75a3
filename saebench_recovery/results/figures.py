"""The figures of a row, added up again from its flips without the machinery of intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from saebench_recovery.results.mismatch import Mismatch, differing
from saebench_recovery.schema import Drift, Facts, Mean, Rate, Record, Row
from saebench_recovery.scoring.measures import MEASURES, verdict

Values = Sequence[bool | float | None]
ROUNDING = 1e-9  # relative, of a mean that is added up in another order
BUDGET_ROUNDING = 1e-5  # relative: a perturbation that is clipped has its norm but for this


def figure_mismatches(row: Row, flips: Sequence[Record], facts: Facts) -> Iterator[Mismatch]:
    """Counts, means and largest values that the flips of a row do not have."""
    several = facts.perturbation.kind == "several"
    for measure in MEASURES:
        values: Values = [record.measures.get(measure.name) for record in flips]
        if measure.per_space and several:
            values = [None] * len(flips)
        field = f"measures.{measure.name}"
        if (stored := row.measures.get(measure.name)) is None:
            yield from differing(field, None, f"{len(values)} values", task=row.task)
        else:
            yield from _summary(field, stored, values, row)
    for name, mean in row.figures.items():
        yield from _summary(f"figures.{name}", mean, [r.figures.get(name) for r in flips], row)
    for scope, drift in row.drift.items():
        of_scope = [record.drift.get(scope, {}) for record in flips]
        for name in Drift.model_fields:
            values = [of_flip.get(name) for of_flip in of_scope]
            yield from _summary(f"drift.{scope}.{name}", getattr(drift, name), values, row)
    yield from _curve(row, flips, facts)


def _curve(row: Row, flips: Sequence[Record], facts: Facts) -> Iterator[Mismatch]:
    budgets = [point.budget for point in row.curve.points]
    yield from differing("curve budgets", budgets, list(facts.curve_budgets), task=row.task)
    for point in row.curve.points:
        most = point.budget * (1 + BUDGET_ROUNDING)
        # Where no wrong answer could be injected there is no verdict.
        controlled = [r for r in flips if r.measures.get("wrong_target") is not None]
        for name, norms in (
            ("recovery", [record.smallest_norm for record in flips]),
            ("wrong_target", [record.smallest_norm_wrong for record in controlled]),
        ):
            inside = [norm is not None and norm <= most for norm in norms]
            field = f"curve.points.{point.budget:g}.{name}"
            yield from _summary(field, getattr(point, name), inside, row)
    for limited in row.curve.drift:
        inside = [
            verdict(r, "recovery")
            and r.tightest_limit is not None
            and r.tightest_limit <= limited.limit
            for r in flips
        ]
        yield from _summary(f"curve.drift.{limited.limit:g}", limited.recovery, inside, row)


def _summary(field: str, stored: Rate | Mean, values: Values, row: Row) -> Iterator[Mismatch]:
    known = [value for value in values if value is not None]
    yield from differing(f"{field}.n", stored.n, len(known), task=row.task)
    if isinstance(stored, Rate):
        yield from differing(f"{field}.k", stored.k, sum(map(bool, known)), task=row.task)
    elif known:
        found = {"mean": math.fsum(known) / len(known), "median": median(known), "max": max(known)}
        for name, value in found.items():
            held = getattr(stored, name)
            if held is None or not math.isclose(held, value, rel_tol=ROUNDING, abs_tol=1e-12):
                yield from differing(f"{field}.{name}", held, value, task=row.task)
