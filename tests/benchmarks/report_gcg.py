"""Print what gcg costs: `python -m tests.benchmarks.report_gcg`.

Its time beside the plain way's, and the mean objective on refusal prompts of the organism that it
reaches with so many FLOPs a flip, beside greedy coordinate gradient with one coordinate a step.
"""

from __future__ import annotations

import torch
from saebench_recovery.attacks.gcg import GreedyCoordinateGradient

from saebench_recovery import registry
from saebench_recovery.interfaces import Defense, Task
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.suffix import SuffixProblem
from saebench_recovery.scoring.attack_and_score import Flip, Setting, pose
from saebench_recovery.scoring.evaluate import valid_flips
from saebench_recovery.spec import Limits
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import preset
from tests.benchmarks.measure import timed
from tests.benchmarks.plain_gcg import both, found
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
    engine, plain = both(random_workload(flips=1), rows=1)
    load = random_workload(flips=1)
    found(load, engine)  # counts its FLOPs
    seconds = [timed(lambda p=problem: found(load, p))[1] for problem in (engine, plain)]  # type: ignore[misc]
    print(f"gcg {seconds[0]:.2f} s, plain {seconds[1]:.2f} s, ratio {seconds[1] / seconds[0]:.1f}")
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
    active = DefendedModel(target, defense)
    _, flips = valid_flips(active, task, task.examples(target, "evaluation"), Meter())
    return Setting(active, task, GreedyCoordinateGradient(), (0.5,), 0.5, Limits(), 0), flips


def searched(setting: Setting, flips: list[Flip], **config: float) -> tuple[float, float]:
    """FLOPs a flip and mean final objective, towards the right answers, over the seeds."""
    attack = GreedyCoordinateGradient(
        GreedyCoordinateGradient.Config.model_validate({"margin": FOREVER, **config})
    )
    spent, reached = [], []
    for seed in range(SEEDS):
        made = Setting(setting.active, setting.task, attack, (0.5,), 0.5, Limits(), seed)
        posed = pose(made, flips, Meter())
        assert isinstance(posed, SuffixProblem)
        problem = posed.rows(torch.arange(0, posed.size, 2))
        suffix = attack.search(problem)
        spent.append(float(problem.trail.spent_N[problem.row_N].mean()))
        reached.append(float(problem.objective(suffix).mean()))
    return sum(spent) / SEEDS, sum(reached) / SEEDS


if __name__ == "__main__":
    main()
