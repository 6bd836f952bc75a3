"""Rule 5: attacks are compared on the same flips and budgets, and none exceeds its budget."""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.attacks.random_direction import RandomDirection

from saebench_recovery import registry
from saebench_recovery.interfaces import (
    Attack,
    ResidualDelta,
)
from saebench_recovery.spec import ThreatModel
from tests.soundness.setting import (
    SITE,
    STEPS,
    THREAT_MODELS,
    a_problem,
    clamp,
    orthogonal,
    run,
    standard,
)


def test_every_attack_gets_the_same_flips_budget_and_positions() -> None:
    first, second = a_problem(), a_problem()
    assert first.examples == second.examples
    for name in ("budget_N", "goal_N", "positions_NP"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert torch.equal(first.radius[SITE], second.radius[SITE])
    made = [standard("nothing"), standard("orthogonal"), standard("unconstrained")]
    assert len({tuple(line.id for line in scored.records) for scored in made}) == 1
    assert len({scored.row.examples for scored in made}) == 1
    assert len({tuple(p.budget for p in scored.row.curve.points) for scored in made}) == 1


@pytest.mark.parametrize("attack", [orthogonal(), RandomDirection()], ids=["search", "random"])
def test_results_do_not_depend_on_how_examples_are_batched(attack: Attack) -> None:
    """Neither figures nor random draws: an example's result is its own."""
    whole = run(clamp(), attack)
    parts = run(clamp(), attack, batch_size=3)
    assert len(whole.records) > 3
    assert [line.id for line in parts.records] == [line.id for line in whole.records]
    for one, other in zip(parts.records, whole.records, strict=True):
        assert one.measures["recovery"] == other.measures["recovery"]
        assert one.objective_recovered == pytest.approx(other.objective_recovered, rel=1e-3)
        assert one.measures["norm"] == pytest.approx(other.measures["norm"], rel=1e-3)


@pytest.mark.parametrize("name", ["orthogonal", "unconstrained", "random-direction"])
@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_no_attack_exceeds_the_budget(name: str, threat_model: ThreatModel) -> None:
    attack = registry.create("attack", name, {} if name == "random-direction" else STEPS)
    assert isinstance(attack, Attack)
    problem = a_problem(threat_model)
    found = attack.run(problem)
    assert isinstance(found, ResidualDelta)
    norm_NP = found.values[SITE].norm(dim=2)
    assert (norm_NP <= problem.radius[SITE] * (1 + 1e-5)).all()


def test_zero_budget_is_flagged() -> None:
    row = run(clamp(), orthogonal(), budget=0.0).row
    assert row.recovery.k == 0
    assert "zero-budget" in row.flag_names
