"""How far attacks are from the smallest norm that is possible: `python -m tests.calibration.table`.

A row for each task, target and attack: the flips whose exact optimum is known, verified and inside
the budget, the ratio of the attack's smallest norm to it, and the flips that the attack missed.
`orthogonal` with two steps is there to be seen as weak.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from saebench_recovery import registry
from saebench_recovery.interfaces import Attack
from tests.calibration.setting import CLAMPS, optima, problem_of, ratios, smallest_norms

ATTACKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("minimal", {}),
    ("orthogonal", {}),
    ("orthogonal", {"steps": 2}),
)


# Behind the last block a prompt's perturbation moves the first token of a text only, and refusal's
# right and wrong answers begin with the same one.
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
        budget_E = problem_of(searching, task, limit, wrong=wrong).pooled_radius_N
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
