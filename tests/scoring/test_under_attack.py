"""What ranks is how often the behaviour shows under attack, over every base example."""

from __future__ import annotations

from saebench_recovery.schema import BaseExample
from saebench_recovery.scoring import statistics
from saebench_recovery.scoring.aggregate import aggregate
from saebench_recovery.scoring.under_attack import Outcome, outcomes, worst
from tests.fakes import facts, record


def left(count: int, cluster: str = "") -> tuple[BaseExample, ...]:
    """Base examples that the defense does not suppress."""
    return tuple(BaseExample(id=f"left{i}", cluster=cluster) for i in range(count))


def test_a_defense_that_suppresses_13_of_64_is_no_strong_one() -> None:
    nothing_recovered = [record(id=str(i)) for i in range(13)]
    weak = aggregate(facts(unsuppressed=left(51)), nothing_recovered).under_attack
    assert (weak.k, weak.n) == (51, 64)
    half_recovered = [record(id=str(i), recovered=i < 32) for i in range(64)]
    assert aggregate(facts(), half_recovered).under_attack.rate == 0.5


def test_only_recovery_inside_the_limits_counts() -> None:
    flips = [record(id="a", recovery=True, constrained=False), record(id="b", recovered=True)]
    assert aggregate(facts(), flips).under_attack.k == 1


def test_where_no_limit_binds_every_recovery_counts() -> None:
    """A defense is not strong because nothing could be held against it."""
    flips = [record(id="a", recovery=True, constrained=None), record(id="b", constrained=None)]
    row = aggregate(facts(), flips)
    assert row.under_attack.k == 1
    assert (row.constrained.n, row.constrained.rate) == (0, None)
    assert "constraint-vacuous" in row.flag_names


def test_a_suite_counts_its_worst_case() -> None:
    flips = [
        record(id="a", attack="one"),
        record(id="b", attack="one", recovered=True),
        record(id="a", attack="two", recovered=True),
    ]
    assert aggregate(facts("one", "two"), flips).under_attack.k == 2


def test_clusters_hold_suppressed_and_other_examples_together() -> None:
    flips = [record(id=str(i), cluster="x") for i in range(3)]
    found = aggregate(facts(unsuppressed=left(3, "x")), flips).under_attack
    assert found == statistics.rate([True] * 3 + [False] * 3, ["x"] * 6)


def test_without_base_examples_there_is_no_rate() -> None:
    assert aggregate(facts(), []).under_attack.rate is None


def test_the_worst_of_attacks_is_taken_example_by_example() -> None:
    one = outcomes(left(1), [record(id="a"), record(id="b", recovered=True)])
    other = outcomes(left(1), [record(id="a", recovered=True), record(id="b")])
    assert worst([one, other]) == {id: Outcome(True, "") for id in ("left0", "a", "b")}
    assert worst([one]) == one
