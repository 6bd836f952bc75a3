"""Time per example-step, of the plain way and of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from tests.benchmarks.plain import PlainSearch
from tests.benchmarks.setting import STEPS, Workload

T = TypeVar("T")

ROUNDS = 3


@dataclass(frozen=True)
class Comparison:
    """Both ways at equal steps; milliseconds (see `timed`) per example-step."""

    problem: Problem
    plain_ND: Tensor
    engine_ND: Tensor  # the same rows of what the engine found
    plain_ms: float
    engine_ms: float
    prefill_ms: float  # of the engine, once per problem row

    @property
    def ratio(self) -> float:
        return self.plain_ms / self.engine_ms

    @property
    def gap(self) -> float:
        """The largest distance between deltas that should be equal, relative to their norm."""
        gap_N = (self.engine_ND - self.plain_ND).norm(dim=1) / self.plain_ND.norm(dim=1)
        return float(gap_N.max())

    def summary(self) -> dict[str, float]:
        """What a benchmark keeps beside its own timing."""
        return {
            "rows": self.problem.size,
            "plain_ms": round(self.plain_ms, 3),
            "engine_ms": round(self.engine_ms, 4),
            "prefill_ms": round(self.prefill_ms, 3),
            "ratio": round(self.ratio),
        }


def compare(load: Workload) -> Comparison:
    """Run the plain way on two rows of the first flip, and the engine on all at once.

    Measurements alternate, so that a busy spell of the machine meets both.
    """
    plain = PlainSearch(load)
    setting = load.setting
    problem, prefill = timed(lambda: load.problem(load.chosen))
    rows = [setting.head, len(setting.budgets) + setting.head]  # right and wrong answer

    def plainly() -> Tensor:
        return torch.stack([plain.search(problem.examples[n], setting.spec.budget) for n in rows])

    plain_times, engine_times = [], []
    for _ in range(ROUNDS):
        plain_ND, seconds = timed(plainly)
        plain_times.append(seconds / len(rows))
        found, seconds = timed(lambda: load.search(problem))
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


def engine_ms(loads: Sequence[Workload], flips: Sequence[int]) -> list[float]:
    """Milliseconds per example-step of the engine on so many flips of each workload.

    Its rounds alternate between them.
    """
    posed = [load.problem(count) for load, count in zip(loads, flips, strict=True)]
    best = [float("inf")] * len(posed)
    for _ in range(ROUNDS + 1):
        for i, (load, problem) in enumerate(zip(loads, posed, strict=True)):
            seconds = timed(lambda load=load, p=problem: load.search(p))[1]  # type: ignore[misc]
            best[i] = min(best[i], 1e3 * seconds / problem.size / STEPS)
    return best


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """A result and the seconds that it took.

    CPU seconds where one thread does all the work, since other processes disturb them least.
    """
    started = _clock()
    result = work()
    return result, _clock() - started


def _clock() -> float:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
