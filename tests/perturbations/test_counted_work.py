"""What a search costs: what is counted is what torch counts around the same work."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp
from torch.utils.flop_counter import FlopCounterMode

from saebench_recovery.interfaces import Example, ResidualDelta
from saebench_recovery.model.forward import forward
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.attack_and_score import score_chunk
from saebench_recovery.scoring.passes import outputs
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples, valid_flips
from saebench_recovery.targets.target import Target
from tests.problems import fitted, organism_setting, problem_of, tiny_setting
from tests.tiny import ARCHITECTURES, tiny_target

TOLERANCE = 0.02
every_model = pytest.mark.parametrize("model", [*ARCHITECTURES, "organism"])


@cache
def setting(kind: str, model: str) -> Setting:
    return organism_setting(kind) if model == "organism" else tiny_setting(kind, model)


@pytest.mark.parametrize("kind", ["residual", "embeddings"])
@every_model
def test_a_gradient_costs_what_torch_counts(kind: str, model: str) -> None:
    meter = Meter()
    problem = problem_of(setting(kind, model), 2, meter)

    def work() -> None:
        problem.gradient(problem.zeros())

    with FlopCounterMode(display=False) as counter:
        work()
    assert meter.flops == 0  # it was not open
    counted = []
    for _ in range(2):  # measured, and then scaled by rows
        before = meter.flops
        with meter.counting():
            work()
        counted.append(meter.flops - before)
    assert counted == pytest.approx([counter.get_total_flops()] * 2, rel=TOLERANCE)
    assert meter.forward == meter.backward == 2 * problem.size
    assert float(problem.spent_N().sum()) == pytest.approx(meter.flops)


@every_model
def test_fewer_rows_cost_what_torch_counts(model: str) -> None:
    """FLOPs are scaled by rows, whose prompts are of different lengths."""
    problem = problem_of(setting("residual", model), 3)
    part, meter = problem.rows(torch.arange(problem.variants // 2)), Meter()
    with meter.counting():
        part.objective(part.zeros())
    with FlopCounterMode(display=False) as counter:
        part.objective(part.zeros())
    assert meter.flops == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)
    assert meter.backward == 0


class Around(Orthogonal):
    """Runs the model itself, beside what it asks of the problem."""

    def __init__(self, prompts: int, example: Example) -> None:
        super().__init__(Orthogonal.Config(steps=2))
        self.prompts, self.example = prompts, example

    def search(self, problem: Problem) -> ResidualDelta:
        target = setting("residual", "gpt2").target
        for _ in range(self.prompts):
            with torch.no_grad():
                forward(target, target.batch([self.example]), {})
        return super().search(problem)


def test_work_around_the_problem_is_counted_too() -> None:
    plain = setting("residual", "gpt2")
    flips = valid_flips(plain, evaluation_examples(plain))[1][:3]

    def cost(prompts: int) -> tuple[int, int, float]:
        held = fitted(plain.target, plain.task, plain.defense, Around(prompts, flips[0].example))
        chunk = score_chunk(held, flips)
        on_rows = sum(record.flops for record in chunk.records)
        return chunk.attacking.forward, chunk.attacking.flops, on_rows

    without, beside = cost(0), cost(100)
    assert beside[0] == without[0] + 100
    meter, target = Meter(), plain.target
    with meter.counting():
        batch = target.batch([flips[0].example])
        forward(target, batch, {})
    assert beside[1] - without[1] == pytest.approx(100 * meter.flops)
    # The rows that were searched bear it: of each flip that of the right and of the wrong answer.
    share = 100 * meter.flops / 2
    assert beside[2] - without[2] == pytest.approx(share, rel=1e-3)


def test_a_defense_costs_the_same_whatever_ran_on_the_model_before() -> None:
    """FLOPs are measured once for each kind of pass, and defenses are among what makes a kind."""
    plain = setting("residual", "gpt2")
    examples = evaluation_examples(plain)[:2]

    def cost(target: Target, latents: int) -> float:
        defense = Clamp(Clamp.Config(latents=latents))
        held = fitted(target, plain.task, defense, plain.attack)
        meter = Meter()
        with meter.counting():
            list(outputs(examples, held.active, plain.task))
        return meter.flops

    fresh = cost(tiny_target("gpt2"), 2)
    used = tiny_target("gpt2")
    assert cost(used, 8) > fresh
    assert cost(used, 2) == fresh
