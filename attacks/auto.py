"""`auto-v1`: the standard suite without parameters, worst case per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from saebench_recovery.interfaces import Attack, Perturbation
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.registry import create, register_attack

# In the order of cost. Every setting is spelled out: what auto-v1 is must not change with the
# defaults of its members.
ASCENT: dict[str, Any] = {
    "positions": "task",
    "steps": 50,
    "lr": 0.2,
    "objective": "behaviour",
    "margin": 1.0,
    "shared": False,
    "through": "defense",
}
EXACT = {"method": "exact", "refresh": 10, "drift": 0.02, "directions": 16, "weight": 1.0}
SOFT = {"length": 8, "steps": 20, "lr": 0.2, "margin": 1.0, "obfuscation": 1.0}
TOKENS = {"length": 8, "steps": 16, "candidates": 16, "topk": 64, "coordinates": 4, "buffer": 4}
MEMBERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("random-direction", {"positions": "task"}),
    ("orthogonal", ASCENT),
    ("jacobian", ASCENT | EXACT),
    ("soft-suffix", SOFT),
    ("gcg", TOKENS | {"margin": 0.5, "drift_penalty": 1.0}),
)


@register_attack("auto-v1")
class AutoV1(Attack):
    """Each member attacks what those before it left unbroken inside the constraint limits.

    A defense is as strong as the strongest attack that it was tried against (AutoAttack,
    arXiv 2003.01690). Another suite gets another name, so that results stay comparable.
    """

    def suite(self) -> Sequence[Attack]:
        return [cast("Attack", create("attack", name, said)) for name, said in MEMBERS]

    def search(self, problem: Problem) -> Perturbation:
        raise NotImplementedError("a suite searches through its members")
