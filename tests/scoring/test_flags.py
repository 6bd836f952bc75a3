"""Each flag is raised by what it names, and by nothing else; suites inherit their members'."""

from __future__ import annotations

from typing import Any

import pytest

from saebench_recovery.schema import (
    Constraint,
    ExampleCounts,
    Facts,
    Finding,
    PerturbationKind,
    Record,
    Row,
)
from saebench_recovery.scoring.aggregate import aggregate
from saebench_recovery.scoring.flags import CONDITIONS
from saebench_recovery.spec import Limits
from tests.fakes import facts, made, record, side_effects


def names(row: Row) -> tuple[str, ...]:
    return tuple(flag.name for flag in row.flags)


def raised(
    given: Facts | None = None, of_all: dict[str, Any] | None = None, *more: Record
) -> tuple[str, ...]:
    """The flags of forty flips of which half recover, changed as said."""
    flips = [record(id=str(i), recovered=i % 2 == 0, **(of_all or {})) for i in range(40)]
    changed = [*flips[: len(flips) - len(more)], *more]
    return names(aggregate(given or facts(), changed))


def drifting(
    relative: float | None, kind: str = "exact", *, below: float | None = None
) -> dict[str, Any]:
    """Of latents that moved so much; `below` their threshold where they are silent."""
    moved = {"relative_l2": relative, "preactivation_relative": below or relative}
    return {"constraint": Constraint(kind=kind, rank=1), "drift": {"perturbed": moved}}


def breaking(**changes: Any) -> Facts:
    return facts(side_effects=side_effects(**changes))


def base(shown: int, chance: float | None, n: int = 100) -> Facts:
    return facts(examples=made(ExampleCounts, n=n, base=shown, valid=40, chance=chance))


FIRST_ORDER = Constraint(kind="first-order", rank=1)
TOKENS = PerturbationKind(kind="tokens", length=4)
UNBOUND: dict[str, Any] = {"constrained": None, "faithful": None}


def test_an_ordinary_row_has_no_flags() -> None:
    assert raised() == ()


@pytest.mark.parametrize(
    ("flag", "flags"),
    [
        ("no-base-behaviour", raised(base(50, 50.0))),
        ("no-base-behaviour", raised(base(57, 50.0))),  # within luck of a coin
        ("zero-budget", raised(facts(budget=0.0))),
        ("forced-sae", raised(facts(forced_sae=True))),
        ("nothing-recovers", raised(None, None, record(id="z", nothing=True))),
        ("no-gradient", raised(None, {"flags": ("no-gradient",)})),
        ("no-suffix", raised(None, None, record(id="z", flags=("no-suffix",)))),
        ("tail-disagrees", raised(None, None, record(id="z", flags=("tail-disagrees",)))),
        ("constraint-broken", raised(None, drifting(2e-3))),
        ("constraint-broken", raised(None, drifting(None, below=2e-3))),
        ("constraint-broken", raised(facts(rounded=True), drifting(2e-2))),
        ("constraint-vacuous", raised(None, UNBOUND)),
        ("first-order-constraint", raised(None, {"constraint": FIRST_ORDER})),
        ("random-recovers", raised(None, {"random_direction": True})),
        ("injection-as-easy", raised(None, {"wrong_target": True})),
        ("retained-too-low", raised(breaking(retain_known=14, retain_kept=11))),
        ("neutral-text-changed", raised(breaking(kl=3.7))),
        ("neutral-text-changed", raised(breaking(ce_increase=10.7))),
        ("side-effects-unknown", raised(breaking(retain_known=0, retain_kept=0))),
        ("side-effects-unknown", raised(breaking(kl=None))),
    ],
    ids=str,
)
def test_each_is_raised_alone(flag: str, flags: tuple[str, ...]) -> None:
    assert flags == (flag,)


@pytest.mark.parametrize(
    "flags",
    [
        raised(base(60, 50.0)),
        raised(base(50, None)),
        raised(facts(budget=0.0, perturbation=TOKENS)),
        raised(None, None, record(id="z", flags=("no-gradient",))),  # one of forty
        raised(facts(rounded=True), drifting(2e-3)),
        raised(None, drifting(2e-3, "none")),
        raised(breaking(retain_known=20, retain_kept=18)),
        raised(breaking(kl=0.49, ce_increase=0.49)),
        raised(
            facts(side_effects=side_effects(kl=3.7, retain_kept=1), limits=Limits(kl=4, retained=0))
        ),
        raised(None, None, record(id="z", **UNBOUND)),
    ],
)
def test_what_is_no_reason(flags: tuple[str, ...]) -> None:
    assert flags == ()


def test_recoveries_outside_the_limits_are_said_where_a_search_holds_to_first_order() -> None:
    outside: dict[str, Any] = {"constrained": False, "faithful": False}
    first_order: dict[str, Any] = {"constraint": FIRST_ORDER}
    assert raised(None, first_order | outside) == ("first-order-constraint", "constraint-lost")
    assert raised(None, outside) == ()
    one = record(id="z", recovered=True, **first_order, **outside)
    assert raised(None, first_order, one) == ("first-order-constraint",)


def test_a_suite_has_lost_nothing_that_another_member_holds() -> None:
    outside: dict[str, Any] = {"constrained": False, "constraint": FIRST_ORDER}
    lost = [record(attack="jacobian", id=f"{i}", recovered=True, **outside) for i in range(4)]
    held = [record(attack="lagrangian", id=f"{i}", recovered=True) for i in range(4)]
    said = facts("jacobian", "lagrangian")
    assert "constraint-lost" in names(aggregate(said, lost))
    assert "constraint-lost" not in names(aggregate(said, [*lost, *held]))


def test_few_flips_and_none() -> None:
    assert names(aggregate(facts(), [record(id="a")])) == ("few-valid-flips",)
    assert names(aggregate(facts(), [])) == ("no-valid-flips",)


def test_a_behaviour_that_is_not_there_is_no_fault_of_the_defense() -> None:
    never = facts(examples=made(ExampleCounts, n=64, base=0, valid=0))
    assert names(aggregate(never, [])) == ("no-base-behaviour",)


def test_a_control_raises_nothing_by_being_one() -> None:
    flips = [
        record(id=str(i), recovered=i < 20, attack="random-direction", random_direction=i < 20,
               wrong_target=i < 20)
        for i in range(40)
    ]  # fmt: skip
    control = facts(attack="random-direction", members=("random-direction",))
    assert names(aggregate(control, flips)) == ()
    ordinary = [flip.model_copy(update={"attack": "orthogonal"}) for flip in flips]
    assert names(aggregate(facts(), ordinary)) == ("random-recovers", "injection-as-easy")


def suite_of(second: dict[str, Any], tried: int = 20) -> Row:
    """Forty flips: the first member recovers half, the second is tried on some of the others."""
    first = [record(id=str(i), recovered=i < 20, attack="one") for i in range(40)]
    later = [record(id=str(20 + i), attack="two", **second) for i in range(tried)]
    return aggregate(facts("one", "two"), [*first, *later])


def test_a_suite_inherits_from_its_members_own_records() -> None:
    """The worst case prefers the first member's records, which show nothing of the second."""
    (flag,) = suite_of(drifting(2e-3)).flags
    assert (flag.name, flag.attack, flag.level) == ("constraint-broken", "two", "caution")
    assert str(flag) == "constraint-broken of two"
    assert suite_of({}).flags == ()


def test_a_later_member_without_a_gradient_on_what_is_left_is_no_blind_suite() -> None:
    assert suite_of({"flags": ("no-gradient",)}, tried=3).flags == ()


def test_what_the_preflight_found_stands_in_the_row() -> None:
    finding = Finding(
        name="gradient-dishonest", level="invalid", sentence="differences disagree", remedy="mend"
    )
    (flag,) = aggregate(facts(findings=(finding,)), [record(id=str(i)) for i in range(40)]).flags
    assert (flag.name, flag.level, flag.sentence, flag.remedy) == tuple(
        finding.model_dump().values()
    )


def test_a_row_on_disk_explains_its_flags() -> None:
    row = aggregate(facts(budget=0.0), [record(id=str(i)) for i in range(40)])
    assert Row.model_validate_json(row.model_dump_json()) == row
    (stored,) = row.model_dump(mode="json")["flags"]
    assert (stored["name"], stored["level"]) == ("zero-budget", "invalid")
    assert stored["sentence"]
    assert stored["remedy"]


def test_names_are_unique_and_explained() -> None:
    every = [condition.name for condition in CONDITIONS]
    assert len(set(every)) == len(every)
    assert all(condition.sentence and condition.remedy for condition in CONDITIONS)
