"""The engine against the plain way: equal steps, equal deltas, and how much each step costs.

`python -m pytest tests/benchmarks --benchmark-only`; `report.py` prints the tables of
docs/speed.md. Times are CPU seconds, which other processes on the machine disturb least, and a
ratio compares two measurements of one run. No time is asserted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from tests.benchmarks.measure import compare, timed
from tests.benchmarks.plain_gcg import both, found
from tests.benchmarks.setting import Workload, organism_is_built, organism_workload, random_workload

TOLERANCE = 1e-4  # of the deltas' norm, after steps that each amplify float32 rounding
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "random": random_workload,
    "organism": organism_workload,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def workload(name: str) -> Workload:
    if name == "organism" and not organism_is_built():
        pytest.skip("the embedded target is not built here")
    return WORKLOADS[name]()


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", WORKLOADS)
def test_search(name: str, benchmark: BenchmarkFixture) -> None:
    """One attack on as many flips as the engine takes at a time."""
    load = workload(name)
    found = compare(load)
    gap_N = (found.engine_ND - found.plain_ND).norm(dim=1) / found.plain_ND.norm(dim=1)
    assert gap_N.max() < TOLERANCE
    benchmark.extra_info |= found.summary()
    benchmark.pedantic(load.setting.attack.search, args=(found.problem,), rounds=1)


@pytest.mark.benchmark(timer=time.process_time)
def test_gcg(benchmark: BenchmarkFixture) -> None:
    """One flip at equal candidates per step: the same suffix, and so the same loss."""
    load = random_workload(flips=1)
    engine, plain = both(load, rows=1)
    expected, plain_s = timed(lambda: found(load, plain))
    suffix = benchmark.pedantic(found, args=(load, engine), rounds=3)
    assert torch.equal(suffix.ids_EL, expected.ids_EL)
    torch.testing.assert_close(engine.objective(suffix), engine.objective(expected))
    engine_s = timed(lambda: found(load, engine))[1]
    benchmark.extra_info |= {"plain_s": round(plain_s, 2), "ratio": round(plain_s / engine_s, 1)}
