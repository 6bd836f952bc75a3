"""What cells of the packaged model share changes no bit of what they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from saebench_recovery.tasks.ioi import IndirectObject

from saebench_recovery.interfaces import Example, Split, Task
from saebench_recovery.runs import provenance
from saebench_recovery.runs.run import execute
from saebench_recovery.runs.sweep.cells import planned, shared_part
from saebench_recovery.runs.sweep.engine import Orders, ThisProcess
from saebench_recovery.selection import spread
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target
from tests.runs.test_run import contents


def test_shared_passes_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an attack with another seed, which is done after the one that made them."""
    made: list[object] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any) -> Any:
            made.append(function)
            return function(*given)

        return counting

    specs = [
        RunSpec(tasks=("ioi",), limit=6, flops=1.0, attack=attack, seed=seed)
        for attack, seed in (("random-direction", 1), ("orthogonal", 0))
    ]
    plans = planned(specs)
    assert shared_part(plans[0]) == shared_part(plans[1])
    execute(specs[1], tmp_path / "alone")
    for module, name in ((provenance, "data_hash"), (spread, "content_residuals")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    asked: set[Task] = set()

    def examples(task: IndirectObject, target: Target, split: Split) -> Sequence[Example]:
        asked.add(task)
        return own_examples(task, target, split)

    own_examples = IndirectObject.examples
    monkeypatch.setattr(IndirectObject, "examples", examples)
    outcomes = ThisProcess(Orders(tmp_path / "shared")).outcomes([plans])
    assert [one.error for one in outcomes] == [None, None]
    own = contents(tmp_path / "shared" / plans[1].identity)
    assert own == contents(tmp_path / "alone" / plans[1].identity)
    assert len(made) == 2  # each once for both
    assert len(asked) == 1  # nor are the second cell's examples laid out to be counted
