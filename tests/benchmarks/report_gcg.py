"""Print what gcg costs: `python -m tests.benchmarks.report_gcg`.

Its time beside the plain way's, and the mean objective on refusal prompts of the organism that it
reaches with so many FLOPs a flip, beside greedy coordinate gradient with one coordinate a step.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from saebench_recovery.attacks.gcg import GreedyCoordinateGradient

from saebench_recovery import registry
from saebench_recovery.interfaces import Defense, Task
from saebench_recovery.model.meter import Meter
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples, valid_flips
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import preset
from tests.benchmarks.measure import timed
from tests.benchmarks.plain_gcg import found, gcg_problem, plainly
from tests.benchmarks.setting import random_workload

FLIPS, SEEDS = 6, 2
FOREVER = 1e6  # a margin that ends no search early
ONE: dict[str, float] = {"coordinates": 1, "buffer": 1}
# The published search tries 512 candidates a step on a vocabulary of 32,000 tokens.
WAYS: dict[str, dict[str, float]] = {
    "one coordinate, 64 candidates": {**ONE, "candidates": 64},
    "one coordinate": ONE,
    "as by default": {},
}
STEPS = (6, 8, 12, 16, 24)  # of searches: the schedule knows the end


def main() -> None:
    torch.set_num_threads(1)
    load = random_workload(flips=1)
    problem = gcg_problem(load, rows=1)
    found(load, problem)  # measures its FLOPs
    engine_s = timed(lambda: found(load, problem))[1]
    with plainly(load):
        plain_s = timed(lambda: found(load, problem))[1]
    print(f"gcg {engine_s:.2f} s, plain {plain_s:.2f} s, ratio {plain_s / engine_s:.1f}")
    print("\nFLOPs a flip, mean objective:\n")
    print(f"| steps | {' | '.join(WAYS)} |")
    print(f"|---{'|---' * len(WAYS)}|")
    refused = refusal_setting()
    flips = refused[1][:FLIPS]
    for steps in STEPS:
        line = [searched(refused[0], flips, steps=steps, **how) for how in WAYS.values()]
        cells = " | ".join(f"{flops:.3g}, {objective:.3f}" for flops, objective in line)
        print(f"| {steps} | {cells} |", flush=True)


def refusal_setting() -> tuple[Setting, list[Flip]]:
    """The organism under its own clamp, and the refusals that it makes."""
    chosen = preset("organism").tasks["refusal"]
    target = load_target("organism", "cpu")
    task = registry.create("task", "refusal", chosen.task)
    defense = registry.create("defense", "clamp", chosen.defenses["clamp"])
    assert isinstance(task, Task)
    assert isinstance(defense, Defense)
    defense.fit(target, task)
    setting = Setting(target, task, defense, GreedyCoordinateGradient(), RunSpec())
    return setting, valid_flips(setting, evaluation_examples(setting))[1]


def searched(setting: Setting, flips: list[Flip], **config: float) -> tuple[float, float]:
    """FLOPs a flip and mean final objective, towards the right answers, over the seeds."""
    attack = GreedyCoordinateGradient(
        GreedyCoordinateGradient.Config.model_validate({"margin": FOREVER, **config})
    )
    spent, reached = [], []
    for seed in range(SEEDS):
        meter = Meter()
        with meter.counting():
            whole = posed(replace(setting, attack=attack, spec=RunSpec(seed=seed)), flips, meter)
            problem = whole.rows(torch.arange(0, whole.size, 2))
            suffix = attack.search(problem)
        spent.append(float(problem.spent_N().mean()))
        reached.append(float(problem.objective(suffix).mean()))
    return sum(spent) / SEEDS, sum(reached) / SEEDS


if __name__ == "__main__":
    main()
