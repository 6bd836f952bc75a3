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
from saebench_recovery.attacks.auto import Suite

from saebench_recovery import registry
from saebench_recovery.base.catalogue import BUILT_IN, Kind
from saebench_recovery.interfaces import Attack, Defense
from saebench_recovery.perturbations.evidence import PARTS, is_shared
from saebench_recovery.perturbations.weights import ChangedWeights
from saebench_recovery.schema import Mean, Rate, Row
from saebench_recovery.scoring import statistics
from saebench_recovery.scoring.evaluate import attacked
from saebench_recovery.scoring.measures import MEASURES, verdict
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.suite import worst_case
from saebench_recovery.scoring.undisturbed import Undisturbed, undisturbed
from saebench_recovery.spec import CURVE_BUDGETS, RunSpec, ThreatModel
from tests.journal import MemoryJournal, Scored, quiet, score
from tests.tiny import ARCHITECTURES, SITES, WIDTH, TinyTask, shared_target

DEFENSES = tuple(BUILT_IN["defense"])
# The tiny task writes no answer that could be begun for it.
ATTACKS = tuple(name for name in BUILT_IN["attack"] if name != "prefill")
THREAT_MODELS: tuple[ThreatModel, ...] = get_args(ThreatModel)
# Slow, and what suites are made of is tried on every defense.
SLOW = ("auto-v1", "auto-v2", "relearn")
BUDGET = 0.4  # not among those of the curve, which must then hold it too
PAIRS = [
    (defense, attack, threat_model, ARCHITECTURES[(a - d + 3 * t) % len(ARCHITECTURES)])
    for (d, defense), (a, attack), (t, threat_model) in product(
        enumerate(DEFENSES), enumerate(ATTACKS), enumerate(THREAT_MODELS)
    )
    if (defense == "clamp" or (d + a + t) % 2 == 0) and not (attack in SLOW and d % 4)
]
every_pair = pytest.mark.parametrize(("defense", "attack", "threat_model", "architecture"), PAIRS)


# What must hold of a row does not depend on how long the search is.
QUICK: dict[str, Any] = {"steps": 8, "latents": 8, "length": 4, "candidates": 8, "queries": 20}
# A random model's prompts differ at random: here the behaviour lies on the other side.
OTHER_WAY = ("gemma2", "gemma3")


def quick_plugin(kind: Kind, name: str, architecture: str) -> Any:
    """A plugin with few steps, and few enough latents to leave a null space."""
    wanted = dict(QUICK)
    if name == "paired-shift":
        wanted["strength"] = -40.0 if architecture in OTHER_WAY else 40.0
    made = registry.create(kind, name, {})
    if isinstance(made, Suite):
        members = [
            (one, {k: QUICK.get(k, v) for k, v in said.items()}) for one, said in made.members
        ]
        vars(made).update(members=tuple(members))
        return made
    fields = type(made.config).model_fields
    return registry.create(kind, name, {k: v for k, v in wanted.items() if k in fields})


@cache
def scored(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str, seed: int = 0
) -> Scored:
    """All attacks meet one fitted defense, as in the cells of a sweep."""
    fitted = seen(defense, threat_model, architecture)
    journal = MemoryJournal()
    found, spec = attacking(attack, architecture), asked(threat_model, seed)
    return Scored(attacked(fitted, found, spec, journal, quiet), journal)


@cache
def seen(defense: str, threat_model: ThreatModel, architecture: str) -> Undisturbed:
    """Before any attack; no attack is asked anything for it."""
    made, found = defending(defense, architecture), attacking("orthogonal", architecture)
    target, spec = shared_target(architecture), asked(threat_model)
    return undisturbed(Setting(target, TinyTask(), made, found, spec), quiet)


def defending(name: str, architecture: str) -> Defense:
    made = quick_plugin("defense", name, architecture)
    assert isinstance(made, Defense)
    return made


def attacking(name: str, architecture: str) -> Attack:
    made = quick_plugin("attack", name, architecture)
    assert isinstance(made, Attack)
    return made


def asked(threat_model: ThreatModel, seed: int = 0) -> RunSpec:
    return RunSpec(threat_model=threat_model, budget=BUDGET, seed=seed, limit=16)


def rates(row: Row) -> list[Rate]:
    points = [rate for p in row.curve.points for rate in (p.recovery, p.wrong_target)]
    # No limit on drift binds where the weights change.
    undefined = ("constrained", "faithful") if row.perturbation.of_weights else ()
    undefined = (*undefined, "never_learned")  # of a task that has no such questions
    return [
        *(m for n, m in row.measures.items() if isinstance(m, Rate) and n not in undefined),
        *points,
    ]


def means(row: Row) -> list[Mean]:
    drifts = [
        getattr(drift, name) for drift in row.drift.values() for name in type(drift).model_fields
    ]
    return [*(m for m in row.measures.values() if isinstance(m, Mean)), *drifts]


@every_pair
def test_counts_agree(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    found = scored(defense, attack, threat_model, architecture)
    row, records = found.row, worst_case(found.records, found.facts.members)
    assert row.examples.n == 16
    assert row.examples.n >= row.examples.base >= row.examples.valid == len(records) > 0
    assert row.examples.clusters == len({record.cluster for record in records})
    assert all(rate.n == len(records) for rate in rates(row))
    assert all(mean.n <= len(records) for mean in means(row))
    for measure in MEASURES:
        counted = row.measures[measure.name]
        if isinstance(counted, Rate):
            assert counted.k == sum(verdict(record, measure.name) for record in records)
    for record in records:
        recovered = verdict(record, "recovery")
        assert recovered == (record.objective_recovered > 0)
        assert record.objective_clean > 0 >= record.objective_defended
        assert all(recovered >= verdict(record, m.name) for m in MEASURES if m.needs_recovery)
    assert row.controls.nothing.k == 0


@every_pair
def test_intervals_contain_their_estimates(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    found = scored(defense, attack, threat_model, architecture)
    row, records = found.row, worst_case(found.records, found.facts.members)
    # Examples of one source item are not counted as independent.
    recovered, clusters = [verdict(r, "recovery") for r in records], [r.cluster for r in records]
    assert row.recovery == statistics.rate(recovered, clusters)
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
    if row.perturbation.kind in ("tokens", "several", "low-rank", "rounded"):
        assert (points, row.norm.n, row.curve.median_norm_recovers) == ((), 0, None)
        return
    assert [point.budget for point in points] == sorted({*CURVE_BUDGETS, BUDGET})
    headline = next(point for point in points if point.budget == BUDGET)
    # The curve is read from the model's tail, the headline is replayed from the tokens.
    assert "tail-disagrees" not in row.flag_names
    # A search at another budget may have come by with less.
    assert headline.recovery.k >= row.recovery.k
    assert headline.wrong_target.k >= row.controls.wrong_target.k
    for counts in ([p.recovery.k for p in points], [p.wrong_target.k for p in points]):
        assert counts == sorted(counts)
    for record in found.records:
        norm = record.measures["norm"]
        assert norm is not None
        assert norm <= BUDGET * (1 + 1e-5)
        if verdict(record, "recovery"):
            assert record.smallest_norm is not None
            assert record.smallest_norm <= norm * (1 + 1e-5)
        for smallest in (record.smallest_norm, record.smallest_norm_wrong):
            assert smallest is None or 0 <= smallest <= max(CURVE_BUDGETS) * (1 + 1e-5)
            # The suffix that embeddings begin as may do by itself.
            assert smallest != 0 or row.perturbation.kind == "embeddings"
    ever = sum(record.smallest_norm is not None for record in found.records)
    assert (row.curve.median_norm_recovers is None) == (2 * ever < len(found.records))


@every_pair
def test_a_constrained_attack_stays_within_the_limits(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    row = scored(defense, attack, threat_model, architecture).row
    if not attacking(attack, architecture).constrained:
        assert (row.constraint.kind, row.constraint.rank) == ("none", 0)
        return
    everywhere = attack == "jacobian"
    assert 0 < row.constraint.rank <= (sum(map(len, row.features.values())) if everywhere else 8)
    local = defending(defense, architecture).sees_only_latents or threat_model == "post"
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
    assert (compute.attack.backward > 0) == (
        attack not in ("random-direction", "query", "quantise")
    )
    if attack not in ("jacobian", "auto-v1"):  # a Jacobian's rows share their forward pass
        assert compute.attack.backward <= compute.attack.forward


@every_pair
def test_stored_perturbations_fit_the_examples(
    defense: str, attack: str, threat_model: ThreatModel, architecture: str
) -> None:
    found = scored(defense, attack, threat_model, architecture)
    kind = found.row.perturbation
    for member in {record.attack for record in found.records}:
        examples = sum(record.attack == member for record in found.records)
        for name, perturbation in found.evidence(member).items():
            tensors = perturbation.tensors()
            assert name in PARTS
            assert all(len(t) == examples for n, t in tensors.items() if not is_shared(n))
            if isinstance(perturbation, ChangedWeights):
                assert len(perturbation.stages()) == len(found.row.stages) > 0
            elif perturbation.kind == "tokens":
                (ids_EL,) = (t for n, t in tensors.items() if n.endswith("/ids"))
                assert kind.length in (None, ids_EL.shape[1])
            else:
                (delta_EPD,) = (t for n, t in tensors.items() if n.startswith("delta/"))
                assert delta_EPD.dtype == torch.float32
                assert kind.kind == "several" or delta_EPD.shape[1:] == (kind.length or 1, WIDTH)
    assert Row.model_validate_json(found.row.model_dump_json()) == found.row


@pytest.mark.parametrize("attack", ATTACKS)
def test_same_seed_gives_the_same_row(attack: str) -> None:
    """Of one defense that all attacks meet, and of one that is fitted for this attack alone."""
    first = scored("clamp", attack, "reclamp", "gpt2")
    plugins = defending("clamp", "gpt2"), attacking(attack, "gpt2")
    again = score(shared_target("gpt2"), TinyTask(), *plugins, asked("reclamp"))
    for one, other in zip(figures(first), figures(again), strict=True):
        # Where a tensor lies in memory can change the order of a sum.
        assert one == (pytest.approx(other, rel=1e-4, abs=1e-5) if type(one) is float else other)


def test_another_seed_draws_another_random_direction() -> None:
    found = [scored("clamp", "random-direction", "reclamp", "gpt2", seed) for seed in (0, 1)]
    one, other = (row.tensors()[f"headline/delta/{SITES[0]}"] for row in found)
    assert not torch.allclose(one, other)


def figures(found: Scored) -> list[Any]:
    """Everything in a row and its examples that is not time."""
    row = found.row.model_dump()
    for role in ("attack", "scoring"):
        row["compute"][role].pop("seconds")
    return leaves([row, *(record.model_dump() for record in found.records)])


def leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for key in value for leaf in (key, *leaves(value[key]))]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]
