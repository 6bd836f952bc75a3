"""The least that one step can take, from what the machine does when it does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch

from saebench_recovery.model.hooks import blocks, start_block
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from tests.benchmarks.measure import timed

REPEATS = 100  # the fastest of many: other processes slow most of them


@dataclass(frozen=True)
class Floors:
    """Of one step on all rows of a problem; neither can be undercut.

    `weights_bytes` are those of the layers after the site, which a step reads once forward and
    once backward; `flops` those of its matrix products.
    """

    weights_bytes: int
    flops: float
    bytes_per_s: float
    flops_per_s: float

    @property
    def weights_ms(self) -> float:
        return 1e3 * 2 * self.weights_bytes / self.bytes_per_s

    @property
    def products_ms(self) -> float:
        return 1e3 * self.flops / self.flops_per_s


def floors(problem: Problem) -> Floors:
    """Bandwidth is measured on the weights themselves, the rate of products on a layer's widths."""
    engine = problem._engine
    late = blocks(engine.active.target.model)[start_block(engine.start.site) :]
    weights = [w for w in chain.from_iterable(b.parameters() for b in late) if w.ndim == 2]
    size = sum(w.numel() * w.element_size() for w in weights)
    meter = Meter()
    with meter.counting():
        problem.gradient(problem.zeros())
    widest = max(weights, key=torch.Tensor.numel)
    rows = torch.randn(engine.batch.ids_RQ.numel(), widest.shape[1]).to(widest)
    product = 2 * rows.shape[0] * widest.numel()
    return Floors(
        size,
        meter.flops,
        size / _fastest(lambda: [w.sum() for w in weights]),
        product / _fastest(lambda: rows @ widest.mT),
    )


@torch.no_grad()
def _fastest(work: Callable[[], object]) -> float:
    return min(timed(work)[1] for _ in range(REPEATS))
