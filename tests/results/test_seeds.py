"""Runs that differ in their seed alone are one row, and nobody chooses among seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.fakes import row
from tests.results.made_runs import Stored, group_of, page_of, places

pytestmark = pytest.mark.usefixtures("made_up_runs")


def test_they_are_merged_with_their_spread(stored: Stored) -> None:
    runs = [stored("clamp", constrained=c, seed=seed) for seed, c in enumerate((50, 60, 70))]
    group = group_of([*runs, stored("ablation", constrained=10)])
    best, merged = group.defenses
    assert (best.defense, best.seeds, best.spread) == ("ablation", (0,), None)
    assert (merged.rank, merged.seeds) == (2, (0, 1, 2))
    assert (merged.under_attack.k, merged.under_attack.n) == (180, 300)
    assert merged.spread is not None
    assert (merged.spread.smallest, merged.spread.largest) == (0.5, 0.7)
    assert merged.spread.deviation == pytest.approx(0.1)
    assert (merged.suppressed, merged.base) == (100, 110)  # those of any one seed
    (attack,) = merged.attacks
    assert (attack.seeds, attack.spread) == (merged.seeds, merged.spread)
    assert attack.measures["constrained"].n == 300
    (pair,) = group.pairs
    assert pair.examples == 100  # those of the seed that both were run with
    assert "0.50 to 0.70 (3)" in page_of(group)


def test_trying_an_example_again_says_nothing_of_others(stored: Stored) -> None:
    """Three seeds with the same outcomes have the interval of one."""
    one = group_of([stored(constrained=30)]).defenses[0]
    runs = [stored(constrained=30, seed=seed) for seed in range(3)]
    three = group_of(runs).defenses[0]
    for of_one, of_three in (
        (one.under_attack, three.under_attack),
        (one.attacks[0].measures["constrained"], three.attacks[0].measures["constrained"]),
    ):
        assert (of_three.low, of_three.high) == pytest.approx((of_one.low, of_one.high))
        assert of_three.n == 3 * of_one.n


def test_a_seed_behind_a_gap_does_not_count(stored: Stored) -> None:
    """Or a defense would be shown with the luckiest of many seeds."""
    runs = [stored(constrained=60), stored(constrained=0, seed=57), stored("b", constrained=1)]
    standing = {d.defense: d for d in group_of(runs).defenses}["clamp"]
    assert standing.seeds == standing.attacks[0].seeds == (0,)
    assert (standing.under_attack.k, standing.under_attack.n) == (60, 100)


def test_without_the_first_seed_there_is_no_rank(stored: Stored) -> None:
    group = group_of([stored("clamp", constrained=60), stored("lucky", constrained=0, seed=1)])
    assert places(group) == [(1, "clamp"), (None, "lucky")]
    assert group.defenses[1].unranked == ("orthogonal was not run with seed 0",)


def test_a_seed_counts_with_every_target_and_attack(stored: Stored) -> None:
    def run(task: str, attack: str, seed: int, constrained: int) -> Path:
        return stored("clamp", attack, constrained, task=task, seed=seed)

    whole = [run(f"tpp/{t}", a, 0, 50) for t in "ab" for a in ("orthogonal", "gcg")]
    half = [run("tpp/a", "orthogonal", 1, 0), run("tpp/a", "gcg", 1, 0)]
    one_attack = [run(f"tpp/{t}", "orthogonal", 1, 0) for t in "ab"]
    for more, of_orthogonal in ((half, (0,)), (one_attack, (0, 1))):
        (standing,) = group_of([*whole, *more]).defenses
        assert (standing.rank, standing.seeds) == (1, (0,))
        assert standing.under_attack.rate == 0.5
        shown = {attack.attack: attack.seeds for attack in standing.attacks}
        assert shown == {"orthogonal": of_orthogonal, "gcg": (0,)}


def test_a_pair_is_tested_on_source_items(stored: Stored) -> None:
    """Five flips that differ, under three seeds alike, are five and not fifteen."""
    runs = [
        stored(defense, constrained=constrained, seed=seed)
        for defense, constrained in (("a", 50), ("b", 55))
        for seed in range(3)
    ]
    (pair,) = group_of(runs).pairs
    assert pair.examples == 300
    assert pair.difference == pytest.approx(0.05)
    assert pair.p_value >= 0.0625  # of 5 clusters that differ no p-value is less


@pytest.mark.parametrize("constrained", [50, 55])
def test_the_interval_of_a_pair_is_that_of_as_many_examples(
    stored: Stored, constrained: int
) -> None:
    """Three seeds with the same outcomes say no more than one."""

    def interval(seeds: int) -> tuple[float | None, float | None]:
        runs = [
            stored(defense, constrained=c, seed=seed)
            for defense, c in (("a", 50), ("b", constrained))
            for seed in range(seeds)
        ]
        (pair,) = group_of(runs).pairs
        return pair.low, pair.high

    assert interval(3) == pytest.approx(interval(1))


def test_further_seeds_do_not_turn_a_test_round(stored: Stored) -> None:
    """On the seed that both met, the defense of the lower rate is surely the worse one."""
    runs = [stored("lucky", constrained=c, seed=seed) for seed, c in enumerate((80, 0, 0))]
    group = group_of([*runs, stored("steady", constrained=50)])
    (pair,) = group.pairs
    assert pair.adjusted < 0.05
    assert places(group) == [(1, "lucky"), (1, "steady")]


def test_a_run_that_ranks_nothing_does_not_set_the_first_seed(stored: Stored) -> None:
    """Or anybody's control with a lower seed would take all others off the board."""
    clamp = [stored("clamp", "auto-v1", 50, seed=seed) for seed in (1, 2)]
    others = [stored("clamp", "random-direction", 0), stored("other", "orthogonal", 0)]
    group = group_of([*clamp, *others])
    assert places(group) == [(1, "clamp"), (None, "other")]
    assert group.defenses[0].seeds == (1, 2)


def test_no_row_has_a_seed_that_no_run_can_have() -> None:
    with pytest.raises(ValidationError):
        row(seed=-1)
