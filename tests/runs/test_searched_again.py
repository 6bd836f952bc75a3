"""A row is held to a search made once more: what did not search, or hid what it saw, is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saebench_recovery import run
from saebench_recovery.interfaces import Attack, Perturbation, ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.runs.verify import recompute
from saebench_recovery.runs.verify.report import Verification
from saebench_recovery.runs.verify.search import LEAST, SEARCHED, drawn
from saebench_recovery.runs.verify.verify import verify
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target
from tests.forged import Forger

LIMIT = 12
MADE: dict[str, Any] = {
    "tasks": ["ioi"],
    "limit": LIMIT,
    "task_config": {"prompts": LIMIT},
    "budget": 1.0,
    "attack_config": {"steps": 10},
}

# Its gradient is the negative one wherever an attack searches.
MISLEADING = """
import sys
from saebench_recovery.defenses.clamp import Clamp
from saebench_recovery.registry import register_defense

def searching():
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "search":
            return True
        frame = frame.f_back
    return False

@register_defense("misleading-clamp")
class Mine(Clamp):
    def intervene(self, site, resid_BTD):
        changed = super().intervene(site, resid_BTD)
        return 2 * changed.detach() - changed if searching() else changed
"""


@pytest.fixture(scope="module")
def loaded() -> Target:
    return load_target("organism", "cpu")


@pytest.fixture(autouse=True)
def replaying(loaded: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model for all."""
    monkeypatch.setattr(recompute, "load_target", lambda *_, **__: loaded)


def made(out: Path, **options: Any) -> Path:
    return out / run(out=out, **{**MADE, **options}).identity


def beaten(found: Verification) -> set[str]:
    return {mismatch.field for mismatch in found.mismatches}


def lazy(self: Attack, problem: Problem, *, shortest: bool = False) -> Perturbation:
    """One look, so that it costs something."""
    problem.objective(problem.nothing())
    return problem.nothing()


honest = Attack.run


def lopsided(self: Attack, problem: Problem, *, shortest: bool = False) -> Perturbation:
    """Looks as it should, and keeps nothing of what it found for a wrong answer."""
    found = honest(self, problem, shortest=shortest)
    assert isinstance(found, ResidualDelta)
    right = torch.tensor([e.candidates[0][0] in e.prompt for e in problem.examples])
    return replace(found, values={s: v * right[:, None, None] for s, v in found.values.items()})


def test_an_honest_run_holds(tmp_path: Path) -> None:
    folder = made(tmp_path)
    found = verify(folder)
    assert (found.exit_code, list(found.lines())) == (0, [])
    assert 5 <= found.searched == found.stored_flips <= LIMIT
    assert found.seed is not None
    assert found.verdict.endswith(
        f"{found.searched} searched again, drawn with --sample-seed {found.seed}"
    )
    few = verify(folder, sample=2)
    assert (few.exit_code, few.flips, few.searched) == (0, 2, min(LEAST, found.searched))
    assert verify(folder, sample=2, seed=few.seed) == few


def test_a_suite_that_did_not_search_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Attack, "run", lazy)
        folder = made(tmp_path, attack="auto-v1", attack_config={})
    found = verify(folder, sample=1)
    assert found.exit_code == 1
    assert "search: recovery inside the limits" in beaten(found)


@pytest.mark.parametrize(
    ("search", "fields"),
    [
        (lazy, {"search: recovery inside the limits", "search: recovery", "search: wrong_target"}),
        (lopsided, {"search: wrong_target"}),
    ],
)
def test_a_search_that_kept_nothing_does_not_hold(
    search: Callable[..., Perturbation],
    fields: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Attack, "run", search)
        folder = made(tmp_path)
    found = verify(folder)
    assert found.exit_code == 1
    assert fields <= beaten(found)
    assert all(field.startswith("search: ") for field in beaten(found))
    line = next(m.line for m in found.mismatches if m.field == "search: wrong_target")
    assert line.startswith(f"ioi search: wrong_target: stored 0 of {found.searched}, found ")


def test_a_control_without_evidence_is_searched_again(tmp_path: Path) -> None:
    folder = made(tmp_path)
    forger = Forger(folder)
    for record in forger.records:
        assert record["measures"]["wrong_target_reference"] is not None
        record["measures"]["wrong_target_reference"] = False
    forger.seal()
    assert beaten(verify(folder, sample=1)) == {"search: wrong_target_reference"}


def test_a_search_that_does_better_than_the_repeated_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path)
    monkeypatch.setattr(Attack, "run", lopsided)
    found = beaten(verify(folder))
    assert found <= {"search: wrong_target_reference"}  # of which there is no evidence


def test_a_flag_of_a_search_holds_and_cannot_be_taken_out(tmp_path: Path) -> None:
    plugin = tmp_path / "misleading.py"
    plugin.write_text(MISLEADING)
    # In one chunk: of two flips alone few gradients can be judged, and the one or other is missed.
    folder = made(tmp_path, defense="misleading-clamp", plugins=[plugin], batch_size=LIMIT)
    forger = Forger(folder)
    flagged = [record["flags"] for record in forger.records]
    assert all("search-misled" in flags for flags in flagged)
    found = verify(folder, sample=2, plugins=[plugin])
    assert (found.exit_code, list(found.lines())) == (0, [])
    for flags in flagged:
        flags.remove("search-misled")
    forger.seal()
    found = verify(folder, sample=2, plugins=[plugin])
    assert beaten(found) == {"search: flags"}
    assert "search-misled on" in found.mismatches[0].found


def test_what_is_drawn() -> None:
    ids = [f"ioi/{number}" for number in range(40)]
    assert len(drawn(ids, None, "1")) == len(drawn(ids, 99, "1")) == SEARCHED
    assert len(drawn(ids, 1, "1")) == LEAST
    assert drawn(ids, None, "1") != drawn(ids, None, "2")
    assert len(drawn(ids[:5], None, "1")) == 5
    assert drawn(ids[:4], None, "1") == set()


def test_places_of_the_attacks_own_choice_cannot_be_hidden(tmp_path: Path) -> None:
    """The row would stand beside those of attacks that had fewer."""
    folder = made(tmp_path, attack_config={"steps": 10, "positions": "all"})
    assert verify(folder, sample=1).holds
    forger = Forger(folder)
    assert forger.state["facts"][0]["perturbation"]["elsewhere"]
    forger.state["facts"][0]["perturbation"]["elsewhere"] = False
    forger.seal()
    assert beaten(verify(folder, sample=1)) == {"facts.perturbation.elsewhere"}
