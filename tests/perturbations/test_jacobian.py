"""The Jacobian constraint: right derivatives, nothing invisible, and a drift that comes back."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import pytest
import torch
from saebench_recovery.attacks.jacobian import Jacobian
from saebench_recovery.attacks.orthogonal import Orthogonal
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense, Example, ResidualDelta, Task
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.perturbations.jacobian import Linearised, Rows
from saebench_recovery.perturbations.kinds import pose
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.space import Posing
from saebench_recovery.spec import Limits, RunSpec, ThreatModel
from tests.journal import Scored, score
from tests.tiny import ARCHITECTURES, SITES, TinyTask, shared_target

SITE, LATER = map(Site.parse, SITES)


class AtTheLastTwo(Orthogonal):
    """Perturbs the last two tokens of a prompt."""

    def positions(self, task: Task, example: Example) -> tuple[int, ...]:
        return (len(example.prompt) - 2, len(example.prompt) - 1)


class Forced(TinyTask):
    """Answers of two tokens: positions behind the prompt are scored as well."""

    candidates = ((11, 12), (21, 22))


def problem(
    architecture: str = "gpt2",
    defense: str = "multilayer",
    task: TinyTask | None = None,
    threat_model: ThreatModel = "reclamp",
    meter: Meter | None = None,
    allowance: float | None = None,
    **config: Any,
) -> Problem:
    """Three prompts, two variants each, perturbed at the last two tokens."""
    target, task = shared_target(architecture), task or TinyTask()
    made = registry.create("defense", defense, {"latents": 5, **config})
    assert isinstance(made, Defense)
    made.fit(target, task)
    examples = list(task.examples(target, "evaluation"))[:3]
    posing = Posing(
        DefendedModel(target, made, threat_model),
        task,
        [[e, e] for e in examples],
        torch.full((3, 2), 0.5),
        "relative",
        {},
        torch.ones(3),
        seed=0,
        meter=meter or Meter(),
        drift_rule=DriftRule(Limits(), dict.fromkeys(made.latents, 1.0)),
        allowance=allowance,
    )
    return pose("residual", AtTheLastTwo(), posing)


def random_flat(model: Linearised, size: float, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    zeros = model.flat(model.problem.zeros().values)
    step = torch.randn(zeros.shape, generator=drawn, dtype=torch.float64)
    unit: Tensor = step / step.norm(dim=1, keepdim=True)
    return size * unit


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_jacobian_is_that_of_finite_differences(architecture: str, forced: bool) -> None:
    model = Linearised(problem(architecture, task=Forced() if forced else None), None, None)
    assert model.held == [LATER]
    model.look(random_flat(model, 0.0), linearise=False)  # the reference
    scale_N1 = model.problem.pooled_radius_N[:, None]
    at, step_N1 = model.inside(0.2 * scale_N1 * random_flat(model, 1.0, seed=1)), 1e-3 * scale_N1
    rows = model.look(at, linearise=True).rows
    assert rows is not None
    close = []
    for seed in range(2, 8):
        direction = model.inside(random_flat(model, 1.0, seed))
        ends = [
            model.look(at + sign * step_N1 * direction, linearise=False).moved_NK
            for sign in (1, -1)
        ]
        measured = (ends[0] - ends[1]) / (2 * step_N1)
        predicted = (rows.jacobian_NKF @ direction[:, :, None])[:, :, 0]
        close.append((measured - predicted).norm(dim=1) < 2e-3 * predicted.norm(dim=1))
    # A clamp jumps where a latent crosses its threshold; few of the steps meet such a jump.
    assert torch.stack(close).float().mean() >= 0.75


def test_latents_that_are_off_are_held_as_well() -> None:
    model = Linearised(problem(), None, None)
    model.look(random_flat(model, 0.0), linearise=False)
    look = model.look(random_flat(model, 0.3, seed=1), linearise=True)
    assert look.rows is not None
    defense = model.problem._engine.active.defense
    assert defense is not None
    assert model._origin is not None
    off = (model._origin.reference.z_RQS[LATER] == 0).flatten(1)
    assert off.any()
    assert (look.rows.jacobian_NKF.norm(dim=2)[off] > 0).all()
    assert (look.moved_NK[off].abs() > 1e-3).any()


def test_removing_and_correcting_are_exact_for_a_linear_map() -> None:
    drawn = torch.Generator().manual_seed(0)
    for K, F in ((5, 40), (40, 12)):
        jacobian = torch.randn(3, K, F, generator=drawn, dtype=torch.float64)
        jacobian[:, -1] = 2 * jacobian[:, 0]  # dependent
        jacobian[:, 1] = 0  # a reading that nothing moves
        rows = Rows(jacobian)
        step = torch.randn(3, F, generator=drawn, dtype=torch.float64)
        moved = (jacobian @ step[:, :, None])[:, :, 0]
        kept = rows.remove(step)
        assert (jacobian @ kept[:, :, None]).abs().max() < 1e-9
        assert (kept.norm(dim=1) <= step.norm(dim=1)).all()
        back = (jacobian @ (step + rows.correction(moved))[:, :, None]).abs().max()
        assert back < 1e-8
        assert (rows.correction(moved).norm(dim=1) <= step.norm(dim=1) * (1 + 1e-9)).all()
        index = torch.tensor([2, 0])
        torch.testing.assert_close(rows.rows(index).remove(step[index]), kept[index])


def test_correction_steps_take_a_realised_drift_back() -> None:
    model = Linearised(problem(multiplier=0.3), None, None)
    model.look(random_flat(model, 0.0), linearise=False)
    length = 0.4 * model.problem.pooled_radius_N[:, None]
    delta = model.inside(length * random_flat(model, 1.0, seed=3))
    drifts = []
    for _ in range(8):
        look = model.look(delta, linearise=True)
        drifts.append(look.drift_N)
        assert look.rows is not None
        delta = delta + look.rows.correction(look.moved_NK)
    assert drifts[0].median() > 0.05
    assert (drifts[-1] <= 1e-4).all()
    assert (delta.norm(dim=1) > 0.1 * length[:, 0]).all()


def attack(method: str = "exact", **config: Any) -> Jacobian:
    return Jacobian(Jacobian.Config.model_validate({"method": method, "steps": 15, **config}))


@cache
def row(defense: str, method: str, threat_model: ThreatModel = "reclamp") -> Scored:
    made = registry.create("defense", defense, {"latents": 4, "multiplier": 0.3})
    assert isinstance(made, Defense)
    found: Attack = (
        attack(method) if method != "orthogonal" else Orthogonal(Orthogonal.Config(steps=15))
    )
    target, spec = shared_target("gpt2"), {"budget": 0.5, "limit": 16}
    return score(target, TinyTask(), made, found, RunSpec(threat_model=threat_model, **spec))


def largest_drift(found: Scored) -> float:
    return max(drift.relative_l2.max or 0 for drift in found.row.drift.values())


@pytest.mark.parametrize("threat_model", ["reclamp", "post"])
@pytest.mark.parametrize("defense", ["clamp", "subspace"])
def test_at_one_site_it_is_orthogonal(
    defense: str, threat_model: Literal["reclamp", "post"]
) -> None:
    one, other = (row(defense, m, threat_model) for m in ("exact", "orthogonal"))
    assert one.row.constraint == other.row.constraint
    assert one.row.recovery == other.row.recovery
    deltas = [found.headline().tensors()[f"delta/{SITE}"] for found in (one, other)]
    torch.testing.assert_close(*deltas, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("defense", ["multilayer", "reconstruction"])
def test_it_keeps_what_orthogonal_lets_move(defense: str) -> None:
    corrected, uncorrected = row(defense, "exact"), row(defense, "projection")
    alone, penalised = row(defense, "orthogonal"), row(defense, "penalty")
    assert largest_drift(corrected) <= 0.02 * 1.01
    assert corrected.row.constrained.k == corrected.row.recovery.k
    assert corrected.row.constrained.k >= alone.row.constrained.k
    for other in (uncorrected, alone, penalised):
        assert largest_drift(other) > 2 * largest_drift(corrected)
    assert corrected.row.constraint.kind == uncorrected.row.constraint.kind == "first-order"
    assert "corrected to drift 0.02" in corrected.row.constraint.note
    assert "not corrected" in uncorrected.row.constraint.note
    assert penalised.row.constraint.kind == "none"


def test_a_sketch_of_all_readings_is_exact_and_says_what_it_is() -> None:
    given = problem()
    every, some = (Linearised(given, directions, None) for directions in (10_000, 3))
    assert torch.equal(every.mix_KM, torch.eye(len(every.mix_KM)))
    assert some.mix_KM.shape == (3, len(every.mix_KM))
    note = attack("sketch", directions=3).promise(given).note
    assert "3 random combinations" in note


def test_a_larger_weight_drifts_less() -> None:
    def drift(weight: float) -> Tensor:
        given = problem()
        found = attack("penalty", weight=weight).run(given)
        assert isinstance(found, ResidualDelta)
        model = Linearised(given, None, None)
        model.look(random_flat(model, 0.0), linearise=False)
        return model.look(model.flat(found.values), linearise=False).drift_N

    assert drift(100.0).mean() < 0.5 * drift(0.01).mean()


def test_an_allowance_stops_the_search() -> None:
    def spent(steps: int, allowance: float | None = None) -> float:
        meter = Meter()
        with meter.counting():
            given = problem(meter=meter, allowance=allowance)
            attack(steps=steps).run(given)
        return float(given.spent_N().max())

    few = spent(steps=1)
    assert all(0.3 < spent(9, share * few) / (share * few) < 1.5 for share in (5, 10))


def test_where_a_step_costs_nothing_an_allowance_pays_for_all() -> None:
    """As with a read-out that is pooled at the perturbed site."""
    assert attack(steps=9)._steps(1e7, [0.0, 0.0]) == 9


def test_a_jacobian_too_large_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench_recovery.attacks.jacobian.MOST_BYTES", 1000)
    with pytest.raises(UserError, match="method=sketch"):
        attack().run(problem())


def test_pieces_give_what_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attack(steps=6).run(problem())
    monkeypatch.setattr("saebench_recovery.attacks.jacobian.PIECE_BYTES", 1)
    pieces = attack(steps=6).run(problem())
    assert isinstance(whole, ResidualDelta)
    assert isinstance(pieces, ResidualDelta)
    torch.testing.assert_close(pieces.values[SITE], whole.values[SITE], rtol=1e-3, atol=1e-3)
