"""The engine against the plain way: equal steps, equal deltas, and how much each step costs.

`python -m pytest tests/benchmarks --benchmark-only`; `report.py` prints the tables of
docs/speed.md. Times are CPU seconds, which other processes on the machine disturb least, and a
ratio compares two measurements of one run. No time is asserted; what needs none runs always.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.floors import floors
from tests.benchmarks.measure import compare, timed
from tests.benchmarks.plain_gcg import found, gcg_problem, plainly
from tests.benchmarks.report import main
from tests.benchmarks.setting import Workload, organism_workload, random_workload
from tests.benchmarks.shapes import SHAPES

TOLERANCE = 1e-4  # of the deltas' norm, after steps that each amplify float32 rounding
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "random": random_workload,
    "organism": organism_workload,
}


@cache
def workload(name: str) -> Workload:
    return WORKLOADS[name]()


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", WORKLOADS)
def test_search(name: str, benchmark: BenchmarkFixture) -> None:
    """One attack on as many flips as the engine takes at a time."""
    load = workload(name)
    found = compare(load)
    assert found.gap < TOLERANCE
    benchmark.extra_info |= found.summary()
    benchmark.pedantic(load.search, args=(found.problem,), rounds=1)


@pytest.mark.benchmark(timer=time.process_time)
def test_gcg(benchmark: BenchmarkFixture) -> None:
    """One flip at equal candidates per step: the same suffix, and so the same loss."""
    load = random_workload(flips=1)
    problem = gcg_problem(load, rows=1)
    with plainly(load):
        expected, plain_s = timed(lambda: found(load, problem))
    suffix = benchmark.pedantic(found, args=(load, problem), rounds=3)
    assert torch.equal(suffix.ids_EL, expected.ids_EL)
    torch.testing.assert_close(problem.objective(suffix), problem.objective(expected))
    engine_s = timed(lambda: found(load, problem))[1]
    benchmark.extra_info |= {"plain_s": round(plain_s, 2), "ratio": round(plain_s / engine_s, 1)}


def test_report_of_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """The command that times a large model, on a tiny one: both ways find the same deltas."""
    main(["--shape", "tiny"])
    printed = capsys.readouterr().out
    gap = re.search(r"differ by (\S+) of", printed)
    assert gap is not None
    assert float(gap[1]) < TOLERANCE
    for size in (*SHAPES["tiny"].latents_grow, *SHAPES["tiny"].widths_grow):
        assert f"\n| {size} | " in printed


def test_floors_count_what_a_step_needs() -> None:
    """Every weight behind the site once forward and once backward, two FLOPs each and row."""
    shape = SHAPES["tiny"]
    load = shape.workload(shape.model("cpu"))
    problem = load.problem(2)
    least = floors(problem)
    products = 2 * 2 * problem.size * least.weights_bytes / 4
    assert products < least.flops < 2 * products  # attention, latents and logits come on top


def test_defended_latents_and_width_hardly_count() -> None:
    """500 latents of 65,536 take at most half as many products again as 20 of 512."""
    spent = []
    for latents, width in ((20, 512), (500, 65536)):
        load = random_workload(d_model=640, tokens=16, latents=latents, width=width, flips=1)
        problem = load.problem(1)
        with FlopCounterMode(display=False) as counter:
            load.setting.attack.search(problem)
        spent.append(counter.get_total_flops())
    assert spent[1] < 1.5 * spent[0]
