"""Each flag is raised by what it names, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from saebench_recovery.schema import Constraint, Facts, PerturbationKind, Record, SideEffects
from saebench_recovery.scoring.aggregate import aggregate
from saebench_recovery.scoring.flags import FLAGS, MEANINGS
from tests.fakes import facts, made, record


def raised(
    given: Facts | None = None, of_all: dict[str, Any] | None = None, *more: Record
) -> tuple[str, ...]:
    """The flags of forty flips of which half recover, changed as said."""
    flips = [record(id=str(i), recovered=i % 2 == 0, **(of_all or {})) for i in range(40)]
    changed = [*flips[: len(flips) - len(more)], *more]
    return aggregate(given or facts(), changed).flags


def drifting(relative: float) -> dict[str, Any]:
    return {
        "constraint": Constraint(kind="exact", rank=1),
        "drift": {"perturbed": {"relative_l2": relative}},
    }


def retaining(accuracy: float | None) -> SideEffects:
    return made(SideEffects, retain_accuracy_defended=accuracy)


FIRST_ORDER = Constraint(kind="first-order", rank=1)
TOKENS = PerturbationKind(kind="tokens", length=4)


def test_an_ordinary_row_has_no_flags() -> None:
    assert raised(facts(side_effects=retaining(0.95))) == ()


@pytest.mark.parametrize(
    ("flag", "flags"),
    [
        ("zero-budget", raised(facts(budget=0.0))),
        ("forced-sae", raised(facts(forced_sae=True))),
        ("nothing-recovers", raised(None, None, record(id="z", nothing=True))),
        ("no-gradient", raised(None, {"flags": ("no-gradient",)})),
        ("no-suffix", raised(None, None, record(id="z", flags=("no-suffix",)))),
        ("tail-disagrees", raised(None, None, record(id="z", flags=("tail-disagrees",)))),
        ("constraint-broken", raised(facts(constrained=True), drifting(2e-3))),
        ("constraint-broken", raised(facts(constrained=True, rounded=True), drifting(2e-2))),
        ("first-order-constraint", raised(None, {"constraint": FIRST_ORDER})),
        ("random-recovers", raised(None, {"random_direction": True})),
        ("injection-as-easy", raised(None, {"wrong_target": True})),
        ("defense-breaks-model", raised(facts(side_effects=retaining(0.89)))),
    ],
    ids=str,
)
def test_each_is_raised_alone(flag: str, flags: tuple[str, ...]) -> None:
    assert flags == (flag,)


@pytest.mark.parametrize(
    "flags",
    [
        raised(facts(budget=0.0, perturbation=TOKENS)),
        raised(None, None, record(id="z", flags=("no-gradient",))),  # one of forty
        raised(facts(constrained=True, rounded=True), drifting(2e-3)),
        raised(facts(constrained=False), drifting(2e-3)),
    ],
)
def test_what_is_no_reason(flags: tuple[str, ...]) -> None:
    assert flags == ()


def test_few_flips_and_none() -> None:
    assert aggregate(facts(), [record(id="a")]).flags == ("few-valid-flips",)
    assert aggregate(facts(), []).flags == ("no-valid-flips",)


def test_names_are_unique_and_explained() -> None:
    assert list(MEANINGS) == [flag.name for flag in FLAGS]
    assert all(MEANINGS.values())
