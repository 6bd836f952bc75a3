"""Cells of a sweep share what they can, fail alone, are tried twice, and are ordinary runs."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.store import RESULT
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.run import execute
from saebench_recovery.runs.sweep.cells import grouped, planned, shard, state
from saebench_recovery.runs.sweep.engine import Orders, Outcome, ThisProcess
from saebench_recovery.runs.sweep.grid import specs_of
from saebench_recovery.runs.sweep.local import SeveralProcesses
from saebench_recovery.runs.sweep.sweep import sweep
from tests.fake_engine import Engine
from tests.runs.sweep import dying
from tests.runs.test_run import contents
from tests.structure.source import ROOT

GRID: dict[str, Any] = {
    "defense": ["clamp", "ablation"],
    "attack": ["orthogonal", "unconstrained"],
    "seed": [0, 1],
    "tasks": ["alpha"],
}


def swept(plans: list[Plan], out: Path) -> list[Outcome]:
    """The outcomes of a sweep in this process, in the order in which they were told."""
    told: list[Outcome] = []
    sweep(plans, ThisProcess(Orders(out)), 1, told.append)
    return told


def test_cells_share_target_and_fits_and_are_as_if_run_alone(
    engine: Engine, tmp_path: Path
) -> None:
    specs = specs_of(GRID)
    for spec in specs:
        execute(spec, tmp_path / "alone")
    assert (len(engine.loaded), len(engine.fitted)) == (8, 8)
    engine.loaded.clear()
    engine.fitted.clear()
    assert [one.error for one in swept(planned(specs), tmp_path / "shared")] == [None] * 8
    assert engine.loaded == ["organism"]
    assert engine.fitted == [("alpha", "clamp"), ("alpha", "ablation")]
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_cells_of_several_tasks_share_each_of_them(engine: Engine, tmp_path: Path) -> None:
    cells = planned(specs_of({**GRID, "tasks": ["alpha", "beta"], "defense": "clamp"}))
    assert [one.error for one in swept(cells, tmp_path)] == [None] * 4
    assert engine.fitted == [("alpha", "clamp"), ("beta", "clamp")]


@pytest.mark.parametrize(
    "changes",
    [
        {"threat_model": ["reclamp", "post"]},
        {"limit": [4, 8]},
        {"defense_config": [{"latents": 3}, {"latents": 4}]},
        {"force_sae": [False, True]},
        {"limits": [{"drift": 0.1}, {"drift": 0.2}]},
    ],
    ids=str,
)
def test_what_changes_the_passes_before_an_attack_is_not_shared(
    engine: Engine, tmp_path: Path, changes: dict[str, Any]
) -> None:
    swept(planned(specs_of({"tasks": ["alpha"], **changes})), tmp_path)
    assert len(engine.fitted) == 2


def test_a_cell_that_fails_is_tried_once_more_and_costs_no_other(
    engine: Engine, tmp_path: Path
) -> None:
    plans, begun, chunks = planned(specs_of(GRID)), count(1), count(1)

    def before(task: str, number: int) -> None:
        if number == 0 and next(begun) in (4, 9):  # the fourth cell, and when it is tried again
            raise ZeroDivisionError("of a plugin")
        if next(chunks) == 2:
            raise UserError("the model gives NaN")

    engine.before = before
    told = swept(plans, tmp_path)
    errors = [one.error for one in told]
    assert errors.count(None) == 7
    assert "ZeroDivisionError: of a plugin" in errors
    assert len(list(tmp_path.glob(f"*/{RESULT}"))) == 7
    engine.before = lambda task, number: None
    left = [plan for plan in plans if state(plan, tmp_path) != "done"]
    assert [one.error for one in swept(left, tmp_path)] == [None]


def test_an_interrupted_sweep_goes_on(engine: Engine, tmp_path: Path) -> None:
    plans = planned(specs_of(GRID))

    def before(task: str, number: int) -> None:
        if len(engine.chunks) == 10:
            raise KeyboardInterrupt

    engine.before = before
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        swept(plans, tmp_path)
    states = [state(plan, tmp_path) for plan in plans]
    assert (states.count("done"), states.count("begun"), states.count("to do")) == (2, 1, 5)
    engine.before = lambda task, number: None
    swept([plan for plan in plans if state(plan, tmp_path) != "done"], tmp_path)
    assert len(engine.chunks) == 8 * 4  # none twice


def test_alike_cells_and_unknown_names_are_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match=r"two cells are alike, with identity [0-9a-f]{16}"):
        planned(specs_of({"budget": [1, 1.0]}))
    with pytest.raises(UserError, match=r"alike.*batch_size 8"):
        planned(specs_of({"batch_size": [None, 8]}))  # of which no number depends
    with pytest.raises(UserError, match="unknown attack 'orthogonl'"):
        planned(specs_of({"attack": ["orthogonal", "orthogonl"]}))


def test_shards_are_all_cells_each_once(engine: Engine) -> None:
    plans = planned(specs_of(GRID))
    for of in (1, 2, 3, 8, 20):
        parts = [shard(plans, f"{i}/{of}") for i in range(1, of + 1)]
        every = [plan.identity for part in parts for plan in part]
        assert sorted(every) == sorted(plan.identity for plan in plans)
        assert max(map(len, parts)) <= max(4, -(-len(plans) // of))
    for wrong in ("", "0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(UserError, match="expected I/N"):
            shard(plans, wrong)


def test_groups_are_cut_for_the_workers(engine: Engine) -> None:
    plans = planned(specs_of(GRID))
    assert [len(group) for group in grouped(plans, 1)] == [4, 4]
    assert [len(group) for group in grouped(plans, 3)] == [3, 1, 3, 1]


def test_a_process_that_dies_costs_an_attempt_of_one_cell(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)  # where a new process finds the tests
    plans = planned(specs_of({"tasks": ["alpha"], "seed": [0, 1, 2, 3, 4]}))
    told, heard = list[Outcome](), list[str]()
    each = SeveralProcesses(
        Orders(tmp_path),
        [{"OMP_NUM_THREADS": "3"}] * 2,
        dying.prepare,
        lambda what, done, total: heard.append(what),
    )
    final = sweep(plans, each, 2, told.append)
    assert len(told) == len(plans)
    assert "seed 0" in heard  # the first word of a process; which of them takes what is left open
    assert [final[plan.identity].error for plan in plans] == [
        None,
        None,
        "refused, with 3 threads",
        "its process ended (killed by SIGKILL); if memory is short, try fewer --jobs",
        None,
    ]
