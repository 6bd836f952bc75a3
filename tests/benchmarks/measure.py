"""CPU time per example-step, of the plain way and of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.recovery.problem import Problem
from tests.benchmarks.plain import PlainSearch
from tests.benchmarks.setting import STEPS, Workload

T = TypeVar("T")

ROUNDS = 3


@dataclass(frozen=True)
class Comparison:
    """Both ways at equal steps; milliseconds of CPU time per example-step."""

    problem: Problem
    plain_ND: Tensor
    engine_ND: Tensor  # the same rows of what the engine found
    plain_ms: float
    engine_ms: float
    prefill_ms: float  # of the engine, once per problem row

    def summary(self) -> dict[str, float]:
        """What a benchmark keeps beside its own timing."""
        return {
            "rows": self.problem.size,
            "plain_ms": round(self.plain_ms, 3),
            "engine_ms": round(self.engine_ms, 4),
            "prefill_ms": round(self.prefill_ms, 3),
            "ratio": round(self.plain_ms / self.engine_ms),
        }


def compare(load: Workload) -> Comparison:
    """Run the plain way on two rows of the first flip, and the engine on all at once.

    Measurements alternate, so that a busy spell of the machine meets both.
    """
    plain = PlainSearch(load)
    setting = load.setting
    started = time.process_time()
    problem = load.problem(load.chosen)
    prefill = time.process_time() - started
    rows = [setting.head, len(setting.budgets) + setting.head]  # right and wrong answer

    def plainly() -> Tensor:
        return torch.stack([plain.search(problem.examples[n], setting.headline) for n in rows])

    plain_times, engine_times = [], []
    for _ in range(ROUNDS):
        plain_ND, seconds = timed(plainly)
        plain_times.append(seconds / len(rows))
        found, seconds = timed(lambda: setting.attack.search(problem))
        engine_times.append(seconds / problem.size)
    assert isinstance(found, ResidualDelta)
    (values_NPD,) = found.values.values()
    return Comparison(
        problem,
        plain_ND,
        values_NPD[rows, 0],
        1e3 * min(plain_times) / STEPS,
        1e3 * min(engine_times) / STEPS,
        1e3 * prefill / problem.size,
    )


def engine_ms(load: Workload, flips: int) -> float:
    """Milliseconds per example-step of the engine on as many flips."""
    problem = load.problem(flips)
    times = [timed(lambda: load.setting.attack.search(problem))[1] for _ in range(ROUNDS + 1)]
    return 1e3 * min(times) / problem.size / STEPS


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """A result and the CPU seconds that it took."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started
