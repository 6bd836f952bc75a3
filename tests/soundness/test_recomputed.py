"""Rule 12: what a row says can be recomputed from what is stored, by the whole model."""

from __future__ import annotations

import torch

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.model.batch import batch
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.passes import whole_pass
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


def test_a_tail_that_disagrees_with_the_whole_pass_is_flagged() -> None:
    class Spoiler(Zero):
        """Changes the cached residual that the tail starts from."""

        def search(self, problem: Problem) -> ResidualDelta:
            problem._engine.start.resid_RQD.mul_(1.5)
            return super().search(problem)

    row = run(clamp(), Spoiler()).row
    assert row.recovery.k == 0
    assert "tail-disagrees" in row.flag_names
