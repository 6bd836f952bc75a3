"""What cells of the packaged model share changes no bit of what they write."""

from __future__ import annotations

from pathlib import Path

from saebench_recovery.runs.run import execute
from saebench_recovery.runs.sweep.cells import planned
from saebench_recovery.runs.sweep.engine import Orders, ThisProcess
from saebench_recovery.runs.sweep.grid import specs_of
from tests.runs.test_run import contents


def test_shared_passes_change_no_bit(tmp_path: Path) -> None:
    attacks = {"attack": ["random-direction", "orthogonal"], "seed": [0, 1]}
    specs = specs_of({"tasks": ["ioi"], "limit": 6, "flops": 1.0, **attacks})
    for spec in specs:
        execute(spec, tmp_path / "alone")
    backwards = ThisProcess(Orders(tmp_path / "shared")).outcomes([planned(specs)[::-1]])
    assert [one.error for one in backwards] == [None] * len(specs)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
