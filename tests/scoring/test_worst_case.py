"""The worst case over a suite's records: a pure function of records and the members' order."""

from __future__ import annotations

from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.schema import Record
from saebench_recovery.scoring.suite import standings, unbroken, worst_case
from tests.fakes import facts, record

MEMBERS = ("first", "second", "third")


def tried(
    attack: str, id: str, *, constrained: bool = False, recovered: bool = False, **changes: Any
) -> Record:
    return record(
        id=id, attack=attack, constrained=constrained, recovery=recovered, flops=10.0, **changes
    )


def test_only_what_is_recovered_inside_the_limits_is_broken() -> None:
    records = [
        tried("first", "a", constrained=True, recovered=True),
        tried("first", "b", recovered=True),
    ]
    assert unbroken(["c", "a", "b"], records) == ["c", "b"]
    assert unbroken(["a"], []) == ["a"]


@pytest.mark.parametrize(
    ("verdicts", "best"),
    [
        ([(False, True), (False, False), (True, True)], "third"),
        ([(False, False), (False, True), (False, True)], "second"),
        ([(False, False), (False, False), (False, False)], "first"),
        ([(True, True)], "first"),
    ],
)
def test_best_is_inside_the_limits_then_any_recovery_then_the_earlier(
    verdicts: list[tuple[bool, bool]], best: str
) -> None:
    turns = zip(MEMBERS, verdicts, strict=False)
    records = [
        tried(member, "a", constrained=constrained, recovered=recovered)
        for member, (constrained, recovered) in turns
    ]
    (worst,) = worst_case(reversed(records), MEMBERS)
    assert worst.attack == best


def test_a_verdict_of_any_member_counts_whichever_did_best() -> None:
    records = [
        tried("first", "a", recovered=True, base_like=True),
        tried("second", "a", recovered=True, constrained=True, zero_reactivation=True),
    ]
    (worst,) = worst_case(records, MEMBERS)
    assert worst.attack == "second"
    names = ("recovery", "constrained", "base_like", "zero_reactivation", "faithful")
    assert [worst.measures[name] for name in names] == [True, True, True, True, False]


def test_cost_is_that_of_all_members_and_recovery_comes_after_those_before() -> None:
    records = [
        tried("first", "a"),
        tried("second", "a", recovered=True, flops_recovers=4.0),
        tried("third", "a"),
    ]
    (worst,) = worst_case(records, MEMBERS)
    assert (worst.flops, worst.flops_recovers) == (30.0, 14.0)
    (never,) = worst_case([records[0]], MEMBERS)
    assert (never.flops, never.flops_recovers) == (10.0, None)


def test_flips_come_in_the_order_of_their_ids() -> None:
    records = [record(id=id) for id in "cab"]
    assert worst_case(records, ("orthogonal",)) == [record(id=id) for id in "abc"]


def test_records_that_do_not_fit_are_refused() -> None:
    once = record(id="a")
    for records in ([once, record(id="a")], [record(id="a", attack="unknown")]):
        with pytest.raises(UserError, match="example 'a' under attack"):
            worst_case(records, ("orthogonal",))


def test_standings_count_records_and_leave_out_who_had_nothing_left() -> None:
    records = [
        tried("first", "a", recovered=True),
        tried("first", "b", constrained=True, recovered=True),
        tried("second", "a", constrained=True, recovered=True),
    ]
    suite = standings(facts(*MEMBERS), records)
    assert [(m.attack, m.tried, m.broken, m.flops) for m in suite] == [
        ("first", 2, 1, 1),
        ("second", 1, 1, 2),
    ]
    assert [m.tried for m in standings(facts(*MEMBERS), [])] == [0]
    assert standings(facts(), records) == ()
