"""Rule 12: what a row says can be recomputed from what is stored, by the whole model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.model.batch import batch
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring import attack_and_score
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.scoring.setting import Flip, Setting
from tests.soundness.setting import (
    Zero,
    clamp,
    evaluation,
    fitted,
    run,
    standard,
)
from tests.tiny import TinyTask


def test_perturbations_are_replayed_from_their_tensors() -> None:
    """What is stored is what was scored: the same margins come back in a fresh pass."""
    scored = standard("orthogonal")
    delta = scored.headline()
    assert isinstance(delta, ResidualDelta)
    by_id = {e.id: e for e in evaluation()}
    examples = [by_id[line.id] for line in scored.records]
    output = whole_pass(fitted(clamp()), TinyTask(), batch(examples), delta, distribution=False)
    wanted = torch.tensor([line.objective_recovered for line in scored.records])
    torch.testing.assert_close(TinyTask().objective(output), wanted, rtol=1e-4, atol=1e-5)


class Spoiler(Zero):
    """Changes the cached residual that the tail starts from."""

    def search(self, problem: Problem) -> ResidualDelta:
        spoil(problem)
        return super().search(problem)


def spoil(problem: Problem) -> None:
    problem._engine.start.resid_RQD.mul_(1.5)


def test_what_a_search_spoils_is_not_what_it_is_judged_by() -> None:
    spoiled, plain = run(clamp(), Spoiler(), limit=None), standard("nothing")
    assert [r.measures for r in spoiled.records] == [r.measures for r in plain.records]
    assert spoiled.row.flags == plain.row.flags


def test_a_tail_that_disagrees_with_the_whole_pass_is_flagged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    posed = attack_and_score.posed

    def spoiled(setting: Setting, flips: Sequence[Flip], meter: Meter) -> Problem:
        problem = posed(setting, flips, meter)
        spoil(problem)
        return problem

    monkeypatch.setattr(attack_and_score, "posed", spoiled)
    row = run(clamp(), Zero()).row
    assert row.recovery.k == 0
    assert "tail-disagrees" in row.flag_names
