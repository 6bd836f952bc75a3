"""How far attacks are from the smallest norm that is possible: `python -m tests.calibration.table`.

A row for each task, target and attack: the flips whose exact optimum is known, verified and inside
the budget, the ratio of the attack's smallest norm to it, and the flips that the attack missed.
`orthogonal` has the norms of `minimal`, whose search carries its curve. `query` with few queries is
there to be seen as weak. `lagrangian` is left out: inside its limits it may be shorter than what is
the optimum for exact constraints.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from saebench_recovery import registry
from saebench_recovery.interfaces import Attack
from tests.calibration.setting import (
    CLAMPS,
    budgets,
    optima,
    posed_for,
    ratios,
    smallest_norms,
)

ATTACKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("minimal", {}),
    ("orthogonal", {}),
    ("query", {"queries": 10}),
)


# Behind the last block a prompt's perturbation moves the first token of a text only: whether a
# wrong answer of refusal then follows is no matter of that token alone.
TARGETS = {"ioi": (False, True), "unlearning": (False, True), "refusal": (False,)}


def attack(name: str, config: dict[str, Any]) -> Attack:
    made = registry.create("attack", name, {"positions": "readout", **config})
    assert isinstance(made, Attack)
    return made


def rows(task: str, limit: int, *, wrong: bool) -> list[str]:
    best = optima(task, limit, wrong=wrong)
    lines = []
    for name, config in ATTACKS:
        searching = attack(name, config)
        budget_E = budgets(posed_for(searching, task, limit)[1])
        found = ratios(best, smallest_norms(searching, task, limit, wrong=wrong), budget_E)
        reached = found[np.isfinite(found)]
        figures = [*np.quantile(reached, (0.5, 0.9, 1.0))] if len(reached) else [np.nan] * 3
        cells = [
            task,
            "wrong" if wrong else "right",
            name + "".join(f" {k}={v}" for k, v in config.items()),
            str(len(found)),
            *(f"{figure:.3f}" for figure in figures),
            str(len(found) - len(reached)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=list(CLAMPS), action="append")
    parser.add_argument("--limit", type=int, default=64)
    given = parser.parse_args()
    print("| task | target | attack | flips | median | p90 | worst | missed |")
    print("|---|---|---|---|---|---|---|---|")
    for task in given.task or CLAMPS:
        for wrong in TARGETS[task]:
            print("\n".join(rows(task, given.limit, wrong=wrong)), flush=True)


if __name__ == "__main__":
    main()
