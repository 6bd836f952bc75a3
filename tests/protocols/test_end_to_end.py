"""A published experiment from the command line to the comparison, on stand-ins from a hub cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from saebench_recovery.results.store import read_result
from saebench_recovery.spec import CURVE_BUDGETS
from tests.layouts import write_gpt2_cache


def test_ioi_without_a_connection(tmp_path: Path) -> None:
    """The real clients, in a fresh process: they read their settings when they are imported."""
    write_gpt2_cache(tmp_path / "hub")
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "160",
        "SAEBENCH_OUT": str(tmp_path / "runs"),
    }
    arguments = ("run", "--protocol", "published", "--task", "ioi", "--limit", "24")
    done = subprocess.run(
        [sys.executable, "-m", "saebench_recovery", *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "IOI on GPT-2 small: encoder projection" in done.stdout
    assert "departs: limit is 24, the protocol has none" in done.stdout
    (row,) = read_result(Path(done.stdout.splitlines()[-1])).rows
    assert (row.target, row.threat_model) == ("gpt2-small", "post")
    assert (row.budget, row.budget_unit) == (20, "absolute")
    assert tuple(point.budget for point in row.curve.points) == tuple(
        20 * share for share in CURVE_BUDGETS
    )
    assert row.examples.valid > 0
    assert row.controls.nothing.k == 0
    assert row.features.keys() == {"blocks.4.hook_resid_pre"}
