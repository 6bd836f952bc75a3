"""A row is a pure function of facts and records, and each of its figures is what it says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench_recovery.schema import (
    Constraint,
    Curve,
    ExampleCounts,
    PerturbationKind,
    Rate,
    Record,
    Row,
)
from saebench_recovery.scoring import statistics
from saebench_recovery.scoring.aggregate import COMPUTE_POINTS, aggregate
from tests.fakes import facts, rate, record

norms = st.none() | st.floats(0, 20)
MEMBERS = ("first", "second")


@st.composite
def flips(draw: st.DrawFn, members: tuple[str, ...] = ("orthogonal",)) -> list[Record]:
    """Records of up to eight flips, each under the first member and some of the others."""
    records = []
    for i in range(draw(st.integers(0, 8))):
        tried = 1 if len(members) == 1 else draw(st.integers(1, len(members)))
        for member in members[:tried]:
            recovered = draw(st.booleans())
            flops = draw(st.floats(0, 1e12))
            records.append(
                record(
                    id=f"flip{i}",
                    cluster=draw(st.sampled_from(["", "a", "b"])),
                    attack=member,
                    recovery=recovered,
                    constrained=recovered and draw(st.booleans()),
                    norm=draw(norms),
                    smallest_norm=draw(norms),
                    smallest_norm_wrong=draw(norms),
                    tightest_limit=draw(norms),
                    flops=flops,
                    flops_recovers=draw(st.none() | st.floats(0, flops)),
                )
            )
    return records


@settings(max_examples=15, deadline=None)
@given(records=flips(MEMBERS), data=st.data())
def test_the_order_of_records_does_not_matter(records: list[Record], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(records))
    row = aggregate(facts(*MEMBERS), records)
    assert row == aggregate(facts(*MEMBERS), shuffled)
    assert Row.model_validate_json(row.model_dump_json()) == row


@settings(max_examples=15, deadline=None)
@given(records=flips())
def test_curves_rise_and_never_pass_the_recovered(records: list[Record]) -> None:
    row = aggregate(facts(curve_budgets=(0.0, 0.1, 0.25, 1.0, 30.0)), records)
    for rates in curves(row.curve):
        counts = [point.k for point in rates]
        assert counts == sorted(counts)
        assert {point.n for point in rates} <= {row.recovery.n}
    assert max((p.recovery.k for p in row.curve.compute), default=0) <= row.recovery.k
    assert max(p.recovery.k for p in row.curve.drift) <= row.recovery.k


def curves(curve: Curve) -> list[list[Rate]]:
    return [
        [point.recovery for point in curve.points],
        [point.wrong_target for point in curve.points],
        [point.recovery for point in curve.compute],
        [point.recovery for point in curve.drift],
    ]


def known_flips() -> list[Record]:
    """Four flips of two source items and one of its own."""
    exact = Constraint(kind="exact", rank=5)
    perturbed: dict[str, Any] = {"drift": {"perturbed": {"l2": 1.0, "relative_l2": None}}}
    return [
        record(
            id="a", cluster="x", recovered=True, base_like=True, fidelity=0.9, norm=0.2,
            smallest_norm=0.1, smallest_norm_wrong=0.5, tightest_limit=0.02, flops=32.0,
            flops_recovers=1.0, constraint=exact, figures={"score": 1.0}, alarmed=True, **perturbed,
        ),
        record(
            id="b", cluster="x", recovered=True, zero_reactivation=True, fidelity=0.7, norm=0.4,
            smallest_norm=0.25, smallest_norm_wrong=2.0, tightest_limit=0.0, flops=8.0,
            flops_recovers=None, constraint=exact, figures={"score": 3.0}, alarmed=False,
        ),
        record(
            id="c", cluster="y", recovery=True, wrong_target=True, fidelity=0.2, norm=None,
            smallest_norm=0.9, smallest_norm_wrong=None, tightest_limit=None, flops=16.0,
            flops_recovers=16.0, constraint=exact, figures={"score": None}, alarmed=True,
        ),
        record(
            id="d", fidelity=0.2, norm=0.6, smallest_norm=None, smallest_norm_wrong=None,
            flops=4.0, constraint=exact, figures={"score": 2.0}, alarmed=True,
        ),
    ]  # fmt: skip


def test_figures_by_hand() -> None:
    counts = ExampleCounts(n=9, base=7, valid=4, learned=0)
    row = aggregate(facts(examples=counts), known_flips())
    clusters = ["x", "x", "y", ""]
    assert (row.examples.n, row.examples.valid, row.examples.clusters) == (9, 4, 3)
    assert row.recovery == statistics.rate([True, True, True, False], clusters)
    assert row.constrained == statistics.rate([True, True, False, False], clusters)
    assert (row.base_like.k, row.measures["zero_reactivation"]) == (
        1,
        statistics.rate([False, True, False, False], clusters),
    )
    assert row.controls.wrong_target == statistics.rate([False, False, True, False], clusters)
    assert (row.controls.nothing.k, row.controls.random_direction.k) == (0, 0)
    unbounded = statistics.mean([0.9, 0.7, 0.2, 0.2], clusters)
    assert row.fidelity == unbounded.model_copy(update={"low": 0.0, "high": 1.0})
    assert row.norm.mean == pytest.approx(0.4)
    assert (row.norm.n, row.norm.max) == (3, 0.6)
    assert (row.figures["score"].n, row.figures["score"].mean) == (3, 2.0)
    assert (row.drift["perturbed"].l2.n, row.drift["perturbed"].relative_l2.n) == (1, 0)
    assert row.drift["later"].l2.mean is None
    assert (row.constraint.kind, row.constraint.rank) == ("exact", 5)
    assert row.suite == ()


def test_an_interval_ends_where_the_values_do() -> None:
    """Three clusters that vary this much have a t interval from below 0 to above 1."""
    flips = [record(id=str(i), fidelity=value) for i, value in enumerate((0.0, 1.0, 0.5))]
    free = statistics.mean([0.0, 1.0, 0.5], [""] * 3)
    assert free.low is not None
    assert free.high is not None
    assert free.low < 0
    assert free.high > 1
    bounded = aggregate(facts(), flips).fidelity
    assert (bounded.low, bounded.high, bounded.mean) == (0, 1, free.mean)


def test_curves_by_hand() -> None:
    curve = aggregate(facts(), known_flips()).curve
    assert [(p.budget, p.recovery.k, p.wrong_target.k) for p in curve.points] == [
        (0.1, 1, 0),
        (0.25, 2, 0),
        (1.0, 3, 1),
    ]
    # b recovered although its objective was never reached: that came at its end.
    assert [(p.flops, p.recovery.k) for p in curve.compute] == [
        (1.0, 1),
        (2.0, 1),
        (4.0, 1),
        (8.0, 2),
        (16.0, 3),
        (32.0, 3),
    ]
    assert len(curve.compute) == COMPUTE_POINTS
    within = {p.limit: p.recovery.k for p in curve.drift}
    assert (within[1e-5], within[0.01], within[0.05], within[1.0]) == (1, 1, 2, 2)
    assert (curve.median_norm_recovers, curve.median_norm_injects) == (0.25, 2.0)
    assert curve.recovery_advantage == 8.0


def test_a_norm_that_was_clipped_to_a_budget_is_inside_it() -> None:
    clipped, beyond = (record(id="a", smallest_norm=0.25 * (1 + e)) for e in (1e-6, 1e-3))
    for flip, inside in ((clipped, 1), (beyond, 0)):
        points = aggregate(facts(curve_budgets=(0.25,)), [flip]).curve.points
        assert points[0].recovery.k == inside


def test_detection_is_among_all_and_among_the_recovered() -> None:
    ringing = facts(stated_false_alarms=0.1, false_alarms=rate(3))
    detection = aggregate(ringing, known_flips()).detection
    assert detection is not None
    assert (detection.stated, detection.false_alarms) == (0.1, rate(3))
    assert (detection.attacked.k, detection.attacked.n) == (3, 4)
    assert (detection.recovered.k, detection.recovered.n) == (2, 3)
    assert aggregate(facts(), known_flips()).detection is None


def test_a_suite_of_several_kinds_has_no_norms_and_no_constraint() -> None:
    several = facts("orthogonal", "other", curve_budgets=())
    row = aggregate(several, known_flips())
    assert (row.norm.n, row.curve.points, row.curve.median_norm_recovers) == (0, (), None)
    assert (row.constraint.kind, row.constraint.note[:7]) == ("none", "several")
    one_kind = several.model_copy(update={"perturbation": PerturbationKind()})
    assert aggregate(one_kind, known_flips()).norm.n == 3


def test_without_valid_flips_rates_are_null() -> None:
    row = aggregate(facts(), [])
    assert (row.recovery.n, row.recovery.rate, row.fidelity.mean) == (0, None, None)
    assert (row.constraint.note, row.curve.compute, row.figures) == ("no valid flips", (), {})
    assert [flag.name for flag in row.flags] == ["no-valid-flips"]


def test_an_undefined_verdict_is_in_no_denominator() -> None:
    records = [record(id="a", wrong_target=None), record(id="b", wrong_target=True)]
    wrong_target = aggregate(facts(), records).controls.wrong_target
    assert (wrong_target.k, wrong_target.n) == (1, 1)
