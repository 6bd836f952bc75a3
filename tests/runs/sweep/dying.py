"""What processes of a sweep do in tests in place of a run: without torch, so they begin fast."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.store import RESULT
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.sweep import engine


def prepare(marks: Path | None = None) -> None:
    """Take the place of a run: seed 1 dies at first, seed 2 is refused, and seed 3 always dies.

    What was tried leaves a mark in a folder, by default that of the results.
    """

    def carried_out(plan: Plan, out: Path, shared: Any, **options: Any) -> SimpleNamespace:
        file = (marks or out) / f"{plan.identity}.tried"
        first, seed = not file.exists(), plan.spec.seed
        file.touch()
        if options["progress"] is not None:
            options["progress"](f"seed {seed}", 0, 1)
        if seed == 3 or (seed == 1 and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 2:
            raise UserError(f"refused, with {os.environ['OMP_NUM_THREADS']} threads")
        (out / plan.identity).mkdir(parents=True)
        (out / plan.identity / RESULT).touch()
        return SimpleNamespace(rows=())

    vars(engine)["carried_out"] = carried_out
