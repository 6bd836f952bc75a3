"""What cells of the packaged model share changes no bit of what they write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from saebench_recovery.tasks.ioi import IndirectObject

from saebench_recovery.interfaces import Example, Split, Task
from saebench_recovery.results.store import read_records
from saebench_recovery.runs import provenance
from saebench_recovery.runs.run import execute
from saebench_recovery.runs.sweep.cells import grouped, planned, shared_part
from saebench_recovery.runs.sweep.engine import Orders, ThisProcess
from saebench_recovery.scoring import turns
from saebench_recovery.scoring.attack_and_score import score_chunk
from saebench_recovery.scoring.journal import Chunk
from saebench_recovery.scoring.setting import Flip, Setting
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


def without_memory(folder: Path) -> dict[str, str]:
    """A run's files but for what the process held: cells before it may have read more of an SAE."""
    held = re.compile(r'"dictionary_bytes": ?\d+')
    return {name: held.sub("", text) for name, text in contents(folder).items()}


def test_another_defense_before_it_changes_no_bit(tmp_path: Path) -> None:
    """Not even of the FLOPs, where a task is read off the means of prompts."""
    specs = [
        RunSpec(tasks=("tpp",), limit=1, attack="random-direction", defense=defense)
        for defense in ("clamp", "steering")
    ]
    execute(specs[1], tmp_path / "alone")
    plans = planned(specs)
    outcomes = ThisProcess(Orders(tmp_path / "shared")).outcomes([[plan] for plan in plans])
    assert [one.error for one in outcomes] == [None, None]
    identity = plans[1].identity
    own = without_memory(tmp_path / "shared" / identity)
    assert own == without_memory(tmp_path / "alone" / identity)


MONITORED = (
    {"defense": "clamp"},
    {"defense": "residual-monitor"},
    {"defense": "clamp", "defense_config": {"monitor": "probe", "false_alarms": 0.2}},
)


@pytest.mark.parametrize(
    "given",
    [{"tasks": ("ioi",), "attack": "auto-v2"}, {"tasks": ("refusal",), "attack": "prefill"}],
)
def test_one_search_serves_all_monitors_and_changes_no_bit(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a suite, and of text put in: what is searched is counted, and every file compared."""
    specs = [RunSpec(limit=6, flops=1.0, **one, **given) for one in MONITORED]
    for spec in specs[1:]:
        execute(spec, tmp_path / "alone")
    attacked: list[int] = []

    def counting(setting: Setting, flips: Sequence[Flip]) -> Chunk:
        attacked.append(len(flips))
        return score_chunk(setting, flips)

    monkeypatch.setattr(turns, "score_chunk", counting)
    plans = planned(specs)
    first, *others = ThisProcess(Orders(tmp_path / "shared")).outcomes(grouped(plans, 1))
    assert [one.error for one in (first, *others)] == [None] * 3
    records = read_records(tmp_path / "shared" / plans[0].identity)
    assert sum(attacked) == len(records) > 0  # those of the first cell alone
    for plan in plans[1:]:
        own, alone = (
            without_memory(tmp_path / place / plan.identity) for place in ("shared", "alone")
        )
        assert own == alone
        assert all(r.alarmed is not None for r in read_records(tmp_path / "shared" / plan.identity))


def test_what_changes_more_than_the_monitor_is_searched_anew() -> None:
    def search(**given: Any) -> str:
        (plan,) = planned([RunSpec(tasks=("ioi",), **given)])
        return plan.search("ioi")

    clamp = search()
    assert search(defense="probe-monitor") == search(defense_config={"monitor": "error"}) == clamp
    others = [
        search(defense="ablation"),
        search(defense_config={"latents": 8}),
        search(defense="residual-monitor", defense_config={"multiplier": -1}),
        search(defense="residual-monitor", seed=1),
        search(defense="residual-monitor", attack_config={"steps": 3}),
        search(defense="residual-monitor", budget=0.25),
        search(defense="residual-monitor", flops=1e9),
        search(defense="residual-monitor", limit=4),
        search(defense="residual-monitor", threat_model="post"),
        search(defense="residual-monitor", task_config={"against": "subject"}),
    ]
    assert len({clamp, *others}) == 1 + len(others)
