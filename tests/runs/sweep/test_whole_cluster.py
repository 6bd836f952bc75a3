"""A real grid on a cluster that loses a machine, and one whose driver is killed: the same rows."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from saebench_recovery.cli.sweeping import prepare
from saebench_recovery.results.store import RESULT
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.sweep.cells import planned
from saebench_recovery.runs.sweep.destination import Folder, opened
from saebench_recovery.runs.sweep.engine import Orders, Outcome, ThisProcess
from saebench_recovery.runs.sweep.grid import read_grid
from saebench_recovery.runs.sweep.sweep import sweep
from saebench_recovery.spec import RunSpec
from tests.runs.test_run import contents

pytestmark = pytest.mark.whole
ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from saebench_recovery.runs.sweep.actors import Actors  # noqa: E402
from saebench_recovery.runs.sweep.ray_session import STORE, room, session  # noqa: E402

GRID = {
    "tasks": "ioi",
    "limit": 6,
    "flops": 1.0,
    "defense": ["clamp", "ablation"],
    "attack": ["random-direction", "orthogonal"],
    "seed": [0, 1],
}
KILLS = 5
LONGEST = 600.0  # seconds


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID))
    return file


@pytest.fixture(scope="module")
def plans(grid: Path) -> list[Plan]:
    return planned(read_grid(grid))


@pytest.fixture(scope="module")
def local(plans: list[Plan], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the cells write in this process."""
    out = tmp_path_factory.mktemp("local")
    outcomes = ThisProcess(Orders(out)).outcomes([plans])
    assert [one.error for one in outcomes] == [None] * len(plans)
    return contents(out)


def test_a_machine_that_is_lost_costs_no_finished_cell(
    plans: list[Plan], local: dict[str, str], tmp_path: Path
) -> None:
    node = {"num_cpus": 1, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    other = cluster.add_node(**node)
    destination, kept = Folder(tmp_path), dict[Path, int]()

    def finished(outcome: Outcome) -> None:
        if not kept:
            kept.update((f, f.stat().st_mtime_ns) for f in tmp_path.glob(f"*/{RESULT}"))
            cluster.remove_node(other, allow_graceful=False)

    try:
        with session(cluster.address), opened(destination):
            workers, share = room(None, None)
            assert workers == 2
            begin = partial(prepare, (), RunSpec())
            engine = Actors(Orders(tmp_path), destination, workers, share, begin)
            final = sweep(plans, engine, workers, finished)
    finally:
        cluster.shutdown()
    assert {one.error for one in final.values()} == {None}
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert contents(tmp_path) == local


def test_a_driver_that_is_killed_goes_on(
    grid: Path, plans: list[Plan], local: dict[str, str], tmp_path: Path
) -> None:
    """Killed with SIGKILL as soon as one more cell is complete."""
    words = ["sweep", str(grid), "--out", str(tmp_path), "--engine", "ray", "--jobs", "1"]
    command = [sys.executable, "-m", "saebench_recovery", *words]
    for kills in range(KILLS):
        process, begun = subprocess.Popen(command), time.monotonic()
        before = set(tmp_path.glob(f"*/{RESULT}"))
        while process.poll() is None and set(tmp_path.glob(f"*/{RESULT}")) == before:
            assert time.monotonic() - begun < LONGEST
            time.sleep(0.2)
        process.kill()
        process.wait()
        assert len(list(tmp_path.glob(f"*/{RESULT}"))) > kills
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob(f"*/{RESULT}")}
    assert subprocess.run(command, check=False, timeout=LONGEST).returncode == 0
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    shown = {name: text for name, text in contents(tmp_path).items() if not name.startswith(".")}
    assert (len(list(tmp_path.glob(f"*/{RESULT}"))), shown) == (len(plans), local)
