"""What must hold of every row, whichever defense meets whichever attack.

Every registered defense meets every registered attack: the clamp under both threat models, the
others under one, in turn. Architectures are spread so that each sees every attack and defense.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any, get_args

import pytest
import torch

from saebench_recovery import registry
from saebench_recovery.base.catalogue import BUILT_IN, Kind
from saebench_recovery.interfaces import Attack, Defense
from saebench_recovery.schema import Mean, Rate, Row
from saebench_recovery.scoring import statistics
from saebench_recovery.scoring.evaluate import Evaluation, evaluate
from saebench_recovery.scoring.flags import CONDITIONS
from saebench_recovery.spec import CURVE_BUDGETS, RunSpec, ThreatModel
from tests.tiny import ARCHITECTURES, SITES, WIDTH, TinyTask, shared_target

DEFENSES, ATTACKS = tuple(BUILT_IN["defense"]), tuple(BUILT_IN["attack"])
THREAT_MODELS: tuple[ThreatModel, ...] = get_args(ThreatModel)
BUDGET = 0.4  # not among those of the curve, which must then hold it too
PAIRS = [
    (defense, attack, threat_model, ARCHITECTURES[(a - d + 3 * t) % len(ARCHITECTURES)])
    for (d, defense), (a, attack), (t, threat_model) in product(
        enumerate(DEFENSES), enumerate(ATTACKS), enumerate(THREAT_MODELS)
    )
    if defense == "clamp" or (d + a + t) % 2 == 0
]
every_pair = pytest.mark.parametrize(("defense", "attack", "threat_model", "architecture"), PAIRS)


def quick(kind: Kind, name: str) -> Any:
    """A plugin with few steps, and few enough latents to leave a null space."""
    wanted = {"steps": 8, "latents": 8, "length": 4, "candidates": 8}
    fields = type(registry.create(kind, name, {}).config).model_fields
    return registry.create(kind, name, {k: v for k, v in wanted.items() if k in fields})


@cache
def scored(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str, seed: int = 0
) -> Evaluation:
    made, found = quick("defense", defense), quick("attack", attack)
    assert isinstance(made, Defense)
    assert isinstance(found, Attack)
    spec = RunSpec(threat_model=threat_model, budget=BUDGET, seed=seed, limit=16)
    return evaluate(shared_target(architecture), TinyTask(), made, found, spec, lambda *_: None)


def rates(row: Row) -> list[Rate]:
    points = [rate for p in row.curve.points for rate in (p.recovery, p.wrong_target)]
    controls = row.controls
    return [
        row.recovery,
        row.constrained,
        row.base_like,
        row.zero_reactivation,
        controls.nothing,
        controls.random_direction,
        controls.wrong_target,
        *points,
    ]


def means(row: Row) -> list[Mean]:
    drifts = [
        getattr(drift, name) for drift in row.drift.values() for name in type(drift).model_fields
    ]
    return [row.fidelity, row.norm, *drifts]


@every_pair
def test_counts_agree(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    found = scored(defense, attack, threat_model, architecture)
    row, lines = found.row, found.examples
    assert row.examples.n == 16
    assert row.examples.n >= row.examples.base >= row.examples.valid == len(lines) > 0
    assert row.examples.clusters == len({line.cluster for line in lines})
    assert all(rate.n == len(lines) for rate in rates(row))
    assert all(mean.n <= len(lines) for mean in means(row))
    assert row.recovery.k == sum(line.recovered for line in lines)
    assert row.constrained.k == sum(line.constrained for line in lines)
    assert row.base_like.k == sum(line.base_like for line in lines)
    for line in lines:
        assert line.recovered == (line.objective_recovered > 0)
        assert line.objective_clean > 0 >= line.objective_defended
        assert line.recovered >= line.constrained
        assert line.recovered >= line.base_like
    assert row.zero_reactivation.k <= row.recovery.k
    assert row.controls.nothing.k == 0
    assert set(row.flag_names) <= {condition.name for condition in CONDITIONS}


@every_pair
def test_intervals_contain_their_estimates(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    found = scored(defense, attack, threat_model, architecture)
    row, clusters = found.row, [line.cluster for line in found.examples]
    # Examples of one source item are not counted as independent.
    assert row.recovery == statistics.rate([e.recovered for e in found.examples], clusters)
    for rate in rates(row):
        assert rate.rate is not None
        assert rate.low is not None
        assert rate.high is not None
        assert 0 <= rate.low <= rate.rate == rate.k / rate.n <= rate.high <= 1
    for mean in means(row):
        assert (mean.mean is None) == (mean.n == 0)
        if mean.mean is not None and mean.low is not None and mean.high is not None:
            assert mean.low <= mean.mean + 1e-9
            assert mean.mean <= mean.high + 1e-9


@every_pair
def test_curve_runs_over_all_budgets(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    found = scored(defense, attack, threat_model, architecture)
    row, points = found.row, found.row.curve.points
    if row.perturbation.kind in ("tokens", "several"):
        assert (points, row.norm.n, row.curve.median_norm_recovers) == ((), 0, None)
        return
    assert [point.budget for point in points] == sorted({*CURVE_BUDGETS, BUDGET})
    headline = next(point for point in points if point.budget == BUDGET)
    # The curve is read from the model's tail, the headline is replayed from the tokens.
    assert "tail-disagrees" not in row.flag_names
    assert headline.recovery == row.recovery
    assert headline.wrong_target == row.controls.wrong_target
    for line in found.examples:
        assert line.relative_norm is not None
        assert line.relative_norm <= BUDGET * (1 + 1e-5)
        if line.recovered:
            assert line.smallest_norm is not None
            assert line.smallest_norm <= line.relative_norm * (1 + 1e-5)
        for norm in (line.smallest_norm, line.smallest_norm_wrong):
            assert norm is None or 0 <= norm <= max(CURVE_BUDGETS) * (1 + 1e-5)
            # The suffix that embeddings begin as may do by itself.
            assert norm != 0 or row.perturbation.kind == "embeddings"
    ever = sum(line.smallest_norm is not None for line in found.examples)
    assert (row.curve.median_norm_recovers is None) == (2 * ever < len(found.examples))


@every_pair
def test_a_constrained_attack_stays_within_the_limits(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    row = scored(defense, attack, threat_model, architecture).row
    if not quick("attack", attack).constrained:
        assert (row.constraint.kind, row.constraint.rank) == ("none", 0)
        return
    everywhere = attack == "jacobian"
    assert row.constraint.rank == (sum(map(len, row.features.values())) if everywhere else 8)
    local = quick("defense", defense).sees_only_latents or threat_model == "post"
    if len(row.features) > 1 or not local:  # a step of any length leaves the linear regime
        assert row.constraint.kind == "first-order"
        assert row.constraint.note
        assert "first-order-constraint" in row.flag_names
        assert row.constrained.k == row.recovery.k or not everywhere
        return
    assert row.constraint.kind == "exact"
    assert row.constrained.k == row.recovery.k
    for scope in ("perturbed", "readout"):
        assert (row.drift[scope].relative_l2.max or 0) <= 1e-4
        moved = row.drift[scope].preactivation_linf.max
        assert moved is not None
        assert moved <= 1e-4


@every_pair
def test_attack_and_scoring_are_both_billed(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    compute = scored(defense, attack, threat_model, architecture).row.compute
    for cost in (compute.attack, compute.scoring):
        assert cost.forward > 0
        assert cost.token_layers > cost.forward
        assert cost.flops > 0
        assert cost.seconds > 0
    assert (compute.attack.backward > 0) == (attack != "random-direction")
    assert compute.attack.backward <= compute.attack.forward


@every_pair
def test_stored_perturbations_fit_the_examples(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    found = scored(defense, attack, threat_model, architecture)
    tensors, kind = found.perturbations, found.row.perturbation
    if kind.kind == "tokens":
        assert tensors["suffix/ids"].shape == (len(found.examples), kind.length)
    elif kind.kind == "several":
        entries = {name.partition("/")[0]: len(tensor) for name, tensor in tensors.items()}
        assert sum(entries.values()) == len(found.examples)
    else:
        (delta_EPD,) = (v for name, v in tensors.items() if name.startswith("delta/"))
        assert delta_EPD.dtype == torch.float32
        assert delta_EPD.shape == (len(found.examples), kind.length or 1, WIDTH)
    assert Row.model_validate_json(found.row.model_dump_json()) == found.row


@pytest.mark.parametrize("attack", ATTACKS)
def test_same_seed_gives_the_same_row(attack: str) -> None:
    first = scored("clamp", attack, "reclamp", "gpt2")
    scored.cache_clear()
    again = scored("clamp", attack, "reclamp", "gpt2")
    assert again is not first
    for one, other in zip(figures(first), figures(again), strict=True):
        # Where a tensor lies in memory can change the order of a sum.
        assert one == (pytest.approx(other, rel=1e-4, abs=1e-5) if type(one) is float else other)


def test_another_seed_draws_another_random_direction() -> None:
    found = [scored("clamp", "random-direction", "reclamp", "gpt2", seed) for seed in (0, 1)]
    one, other = (evaluation.perturbations[f"delta/{SITES[0]}"] for evaluation in found)
    assert not torch.allclose(one, other)


def figures(found: Evaluation) -> list[Any]:
    """Everything in a row and its examples that is not time."""
    row = found.row.model_dump()
    for role in ("attack", "scoring"):
        row["compute"][role].pop("seconds")
    return leaves([row, *(line.model_dump() for line in found.examples)])


def leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for key in value for leaf in (key, *leaves(value[key]))]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]
