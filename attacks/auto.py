"""`auto-v1`: the standard suite without parameters, worst case per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from saebench_recovery.interfaces import Attack, Perturbation
from saebench_recovery.recovery.problem import Problem
from saebench_recovery.registry import create, register_attack

# In the order of cost. Every setting is spelled out: what auto-v1 is must not change with the
# defaults of its members.
MEMBERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("random-direction", {"positions": "task"}),
    (
        "orthogonal",
        {
            "positions": "task",
            "steps": 50,
            "lr": 0.2,
            "objective": "behaviour",
            "margin": 1.0,
            "shared": False,
        },
    ),
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
