"""From records and facts to the row: a pure function, so that anybody can recompute a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saebench_recovery.schema import (
    ComputePoint,
    Constraint,
    Curve,
    CurvePoint,
    Detection,
    Drift,
    DriftPoint,
    Examples,
    Facts,
    Mean,
    Rate,
    Record,
    Row,
    WeightStage,
)
from saebench_recovery.scoring import measures, readings, statistics
from saebench_recovery.scoring.flags import flags
from saebench_recovery.scoring.suite import standings, worst_case
from saebench_recovery.scoring.under_attack import outcomes

# Limits on relative drift at which the curve is read; the run's own ones decide `constrained`.
DRIFT_LIMITS = (1e-5, 1e-3, 0.01, 0.05, 0.1, 0.25, 1.0)
COMPUTE_POINTS = 6  # of the compute curve, each at twice the FLOPs of the one before
SCOPES = ("perturbed", "readout", "later")
ROUNDING = 1e-5  # relative: a perturbation that is clipped to a budget has its norm but for this


def aggregate(facts: Facts, records: Sequence[Record]) -> Row:
    """The row of one (target, task, defense, attack); without valid flips its rates are null.

    Args:
        facts: what the records do not hold.
        records: of a suite, those of every member, in any order; a flip counts under the member
            that did best on it (`suite.worst_case`).

    Raises:
        UserError: records of one flip are doubled, or of an attack that the facts do not name.
    """
    flips = _Flips(worst_case(records, facts.members))
    shown = outcomes(facts.unsuppressed, flips.records).values()
    row = Row(
        task=facts.task,
        target=facts.target,
        defense=facts.defense,
        attack=facts.attack,
        threat_model=facts.threat_model,
        budget=facts.budget,
        budget_unit=facts.budget_unit,
        seed=facts.seed,
        spreads=facts.spreads,
        features=facts.features,
        examples=Examples(
            **facts.examples.model_dump(),
            clusters=len({record.cluster or record.id for record in flips.records}),
        ),
        limits=facts.limits,
        measures={
            measure.name: readings.summary(
                measure,
                readings.values(measure, flips.records, facts.perturbation),
                flips.clusters,
            )
            for measure in measures.MEASURES
        },
        under_attack=statistics.rate([o.shows for o in shown], [o.cluster for o in shown]),
        curve=_curve(facts, flips),
        constraint=_constraint(facts, flips.records),
        drift={scope: _drift(scope, flips) for scope in SCOPES},
        figures={
            name: flips.mean(lambda r, name=name: r.figures.get(name))  # type: ignore[misc]
            for name in dict.fromkeys(name for r in flips.records for name in r.figures)
        },
        detection=_detection(facts, flips),
        perturbation=facts.perturbation,
        suite=standings(facts, records),
        stages=_stages(facts, flips),
        side_effects=facts.side_effects,
        compute=facts.compute,
    )
    return row.model_copy(update={"flags": flags(row, facts, flips.records, records)})


@dataclass(frozen=True)
class _Flips:
    """A record for each valid flip, and what they add up to."""

    records: Sequence[Record]

    @property
    def clusters(self) -> list[str]:
        return [record.cluster for record in self.records]

    def rate(self, of: Callable[[Record], bool | None]) -> Rate:
        return statistics.rate([of(record) for record in self.records], self.clusters)

    def mean(self, of: Callable[[Record], float | None]) -> Mean:
        return statistics.mean([of(record) for record in self.records], self.clusters)


def _curve(facts: Facts, flips: _Flips) -> Curve:
    """Recovery over budgets, compute and drift limits; monotone, as all are read off thresholds."""
    one_kind = [] if facts.perturbation.kind == "several" else flips.records
    recovers = statistics.median_smallest([record.smallest_norm for record in one_kind])
    injects = statistics.median_smallest(
        [record.smallest_norm_wrong for record in one_kind if readings.has_injection(record)]
    )
    return Curve(
        points=tuple(_curve_point(budget, flips) for budget in facts.curve_budgets),
        compute=tuple(
            ComputePoint(
                flops=flops,
                recovery=flips.rate(lambda r, f=flops: readings.recovered_by(r, f)),  # type: ignore[misc]
            )
            for flops in _compute_points(flips.records)
        ),
        drift=tuple(_drift_point(limit, flips) for limit in DRIFT_LIMITS),
        median_norm_recovers=recovers,
        median_norm_injects=injects,
        median_relative_norm=statistics.median_smallest([r.smallest_relative for r in one_kind]),
        recovery_advantage=statistics.advantage(recovers, injects),
    )


def _curve_point(budget: float, flips: _Flips) -> CurvePoint:
    def inside(norm: float | None) -> bool:
        return norm is not None and norm <= budget * (1 + ROUNDING)

    return CurvePoint(
        budget=budget,
        recovery=flips.rate(lambda r: inside(r.smallest_norm)),
        wrong_target=flips.rate(
            lambda r: inside(r.smallest_norm_wrong) if readings.has_injection(r) else None
        ),
    )


def _drift_point(limit: float, flips: _Flips) -> DriftPoint:
    def inside(record: Record) -> bool:
        return record.tightest_limit is not None and record.tightest_limit <= limit

    recovery = flips.rate(lambda r: measures.verdict(r, "recovery") and inside(r))
    return DriftPoint(limit=limit, recovery=recovery)


def _stages(facts: Facts, flips: _Flips) -> tuple[WeightStage, ...]:
    if not facts.perturbation.of_weights:
        return ()
    count = min((len(record.stages) for record in flips.records), default=0)
    return tuple(
        WeightStage(
            **flips.records[0].stages[i].model_dump(include={"steps", "tokens", "flops"}),
            recovery=flips.rate(lambda r, i=i: r.stages[i].shows),  # type: ignore[misc]
            wrong_target=flips.rate(lambda r, i=i: r.stages[i].injects),  # type: ignore[misc]
            retained=flips.records[0].stages[i].retained,
        )
        for i in range(count)
    )


def _compute_points(records: Sequence[Record]) -> list[float]:
    """FLOPs on each flip at which the compute curve is read; none without a search."""
    most = max((record.flops for record in records), default=0.0)
    return [most / 2**i for i in reversed(range(COMPUTE_POINTS))] if most else []


def _constraint(facts: Facts, records: Sequence[Record]) -> Constraint:
    if not records:
        return Constraint(kind="none", rank=0, note="no valid flips")
    if facts.perturbation.kind == "several":
        return Constraint(kind="none", rank=0, note="several attacks, held by the limits alone")
    return records[0].constraint


def _drift(scope: str, flips: _Flips) -> Drift:
    def metric(name: str) -> Mean:
        mean = flips.mean(lambda r: r.drift.get(scope, {}).get(name))
        return readings.within((0.0, math.inf), mean)

    return Drift(**{name: metric(name) for name in Drift.model_fields})


def _detection(facts: Facts, flips: _Flips) -> Detection | None:
    if facts.false_alarms is None or facts.stated_false_alarms is None:
        return None
    recovered = _Flips([r for r in flips.records if measures.verdict(r, "recovery")])
    return Detection(
        stated=facts.stated_false_alarms,
        false_alarms=facts.false_alarms,
        attacked=flips.rate(lambda r: r.alarmed),
        recovered=recovered.rate(lambda r: r.alarmed),
    )
