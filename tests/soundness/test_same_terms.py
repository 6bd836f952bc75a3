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
    for name in ("budget_N", "scale_N", "goal_N", "positions_NP"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    made = [standard("nothing"), standard("orthogonal"), standard("unconstrained")]
    assert len({tuple(line.id for line in scored.examples) for scored in made}) == 1
    assert len({scored.row.examples for scored in made}) == 1
    assert len({tuple(p.budget for p in scored.row.curve.points) for scored in made}) == 1


@pytest.mark.parametrize("attack", [orthogonal(), RandomDirection()], ids=["search", "random"])
def test_results_do_not_depend_on_how_examples_are_batched(attack: Attack) -> None:
    """Neither figures nor random draws: an example's result is its own."""
    whole = run(clamp(), attack)
    parts = run(clamp(), attack, batch_size=3)
    assert len(whole.examples) > 3
    assert [line.id for line in parts.examples] == [line.id for line in whole.examples]
    for one, other in zip(parts.examples, whole.examples, strict=True):
        assert one.recovered == other.recovered
        assert one.objective_recovered == pytest.approx(other.objective_recovered, rel=1e-3)
        assert one.relative_norm == pytest.approx(other.relative_norm, rel=1e-3)


@pytest.mark.parametrize("name", ["orthogonal", "unconstrained", "random-direction"])
@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_no_attack_exceeds_the_budget(name: str, threat_model: ThreatModel) -> None:
    attack = registry.create("attack", name, {} if name == "random-direction" else STEPS)
    assert isinstance(attack, Attack)
    problem = a_problem(threat_model)
    found = attack.run(problem)
    assert isinstance(found, ResidualDelta)
    assert (found.norm_E() <= problem.budget_N * (1 + 1e-5)).all()


def test_zero_budget_is_flagged() -> None:
    row = run(clamp(), orthogonal(), budget=0.0).row
    assert row.recovery.k == 0
    assert "zero-budget" in row.flag_names
