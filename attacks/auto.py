"""The standard suites: without parameters, worst case per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from saebench_recovery.interfaces import Attack, Perturbation
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.registry import create, register_attack

Members = tuple[tuple[str, dict[str, Any]], ...]

# In the order of cost. Every setting is spelled out: what a suite is must not change with the
# defaults of its members.
TASK: dict[str, Any] = {"positions": "task"}
ASCENT: dict[str, Any] = TASK | {
    "steps": 50,
    "lr": 0.2,
    "objective": "behaviour",
    "margin": 1.0,
    "shared": False,
    "through": "defense",
}
EXACT = {"method": "exact", "refresh": 10, "drift": 0.02, "directions": 16, "weight": 1.0}
SOFT = {"length": 8, "starts": 1, "steps": 20, "lr": 0.2, "margin": 1.0, "drift_penalty": 1.0}
TOKENS = {
    "length": 8,
    "starts": 1,
    "steps": 16,
    "candidates": 16,
    "topk": 64,
    "coordinates": 4,
    "buffer": 4,
}
PRICED = {
    "steps": 300,
    "starts": 9,
    "refinements": 2,
    "lr": 0.4,
    "price": 0.003,
    "rise": 5.0,
    "margin": 1.0,
}
CONFIRMED = {"through": "confirmed"}
V1: Members = (
    ("random-direction", TASK),
    ("orthogonal", ASCENT),
    ("jacobian", ASCENT | EXACT),
    ("soft-suffix", SOFT),
    ("gcg", TOKENS | {"margin": 0.5, "drift_penalty": 1.0}),
)
# What each breaks that the others do not: docs/suite.md. The suffixes of v1 broke nothing inside
# the limits; `unconstrained` and `prefill` are there for the worst case without them.
V2: Members = (
    ("orthogonal", ASCENT),
    ("straight-through", ASCENT | {"through": "identity"}),
    ("unconstrained", ASCENT | CONFIRMED),
    ("prefill", {"length": 8, "own": (1, 2, 4, 8)}),
    ("jacobian", ASCENT | EXACT | CONFIRMED),
    ("query", TASK | {"queries": 300, "margin": 1.0}),
    ("lagrangian", TASK | PRICED | CONFIRMED),
)


class Suite(Attack):
    """Each member attacks what those before it left unbroken inside the constraint limits.

    A defense is as strong as the strongest attack that it was tried against (AutoAttack,
    arXiv 2003.01690). Once it is released, another suite gets another name, so that results stay
    comparable.
    """

    members: ClassVar[Members]

    def suite(self) -> Sequence[Attack]:
        return [cast("Attack", create("attack", name, said)) for name, said in self.members]

    def search(self, problem: Problem) -> Perturbation:
        raise NotImplementedError("a suite searches through its members")


@register_attack("auto-v1")
class AutoV1(Suite):
    """As the first boards were made with: by gradients that are trusted, in the null space."""

    members = V1


@register_attack("auto-v2")
class AutoV2(Suite):
    """Also against masked gradients, without any, and up to the very limits on drift."""

    members = V2
