"""Runs that are made up, on disk."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.schema import BaseExample
from saebench_recovery.spec import RunSpec
from tests.fakes import SITE, record, row, run_result, write_run
from tests.results.made_runs import Stored


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Write a run of one task and return its folder.

    Of `valid` flips the first `constrained` are recovered inside the limits, and `left` base
    examples are not suppressed.
    """
    numbers = itertools.count()

    def store(
        defense: str = "clamp",
        attack: str = "orthogonal",
        constrained: int = 80,
        *,
        task: str = "alpha",
        status: str = "complete",
        valid: int = 100,
        left: int = 0,
        asked: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        attack_settings: dict[str, Any] | None = None,
        sources: dict[str, str] | None = None,
        alarmed: bool | None = None,
        **changes: Any,
    ) -> Path:
        spec = RunSpec(
            defense=defense,
            attack=attack,
            tasks=(task,),
            seed=changes.get("seed", 0),
            attack_config=attack_settings or {},
            **(asked or {}),
        )
        configs = {"defense": settings or {}, "attack": attack_settings or {}, "task": {}}
        result = run_result(
            row(task, constrained, valid, defense=defense, attack=attack, **changes),
            status=status,
            identity=f"run{next(numbers)}",
            spec={
                **spec.model_dump(mode="json"),
                "resolved": {task: {"site": SITE, **configs}},
                "environment": {"sources": sources or {}},
                "plugin_files": ["mine.py"],
            },
        )
        flips = [
            record(task, f"{i}", recovered=i < constrained, attack=attack, alarmed=alarmed)
            for i in range(valid)
        ]
        # A defense that flips fewer of the same base examples leaves the others.
        unsuppressed = [BaseExample(id=f"{i}", cluster="") for i in range(valid, valid + left)]
        return write_run(tmp_path / "runs" / result.identity, result, flips, unsuppressed)

    return store
