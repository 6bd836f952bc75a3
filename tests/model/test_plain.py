"""The reference engine and the fast one, which share no code, say the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense, Example, ResidualDelta, Task
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.examples import Output
from saebench_recovery.model.forward import forward
from saebench_recovery.model.generation import written
from saebench_recovery.model.plain import Conditions, PlainModel
from saebench_recovery.model.plain_drift import PlainDrift, decoder_rows, drift_of, read_latents
from saebench_recovery.model.plain_hooks import replaced
from saebench_recovery.model.roles import Intervention
from saebench_recovery.perturbations import drift as fast_drift
from saebench_recovery.sae.files import from_state, load_dictionary
from saebench_recovery.spec import Limits, ThreatModel
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.plain import load_plain
from saebench_recovery.targets.presets import preset
from saebench_recovery.targets.target import Target
from tests.model.setting import POSITIONS, clamp, prompts, random_delta
from tests.model.test_forward import DEFENDED
from tests.plain import plain_model
from tests.sae.test_latents import CASES
from tests.saes import SITE as SAE_SITE
from tests.saes import random_sae, residual
from tests.tiny import ARCHITECTURES, shared_target, tiny_model

TOLERANCE = 1e-4  # relative to the largest entry
LIMITS = (Limits(), Limits(drift=0.3, decode=0.3), Limits(drift=2.0, decode=2.0))
SITES = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


def agree(found: Tensor | None, wanted: Tensor | None) -> None:
    assert found is not None
    assert wanted is not None
    assert found.shape == wanted.shape
    assert torch.equal(found.isinf(), wanted.isinf())
    both = [t[t.isfinite()].double() for t in (found, wanted)]
    if len(both[0]):
        assert (both[0] - both[1]).abs().max() <= TOLERANCE * both[1].abs().max()


def agreeing_drift(found: PlainDrift, wanted: Mapping[str, fast_drift.ScopeDrift], e: int) -> None:
    assert found.scopes.keys() == wanted.keys()
    for scope, metrics in found.scopes.items():
        assert metrics.keys() == wanted[scope].metrics.keys()
        for name, value in metrics.items():
            expected = float(wanted[scope].metrics[name][e])
            if value is None:
                assert np.isnan(expected), (scope, name)
            else:
                # What moved by nothing but rounding has no digits to agree on: readings of about
                # ten are rounded to 1e-6 each, and a fused activation rounds otherwise.
                assert value == pytest.approx(expected, rel=TOLERANCE, abs=3e-5), (scope, name)
    tightest = float(fast_drift.tightest_limit(wanted)[e])
    assert (found.tightest_limit or 0) == pytest.approx(tightest, rel=TOLERANCE, abs=1e-5) or (
        found.tightest_limit is None and np.isinf(tightest)
    )
    for limits in LIMITS:
        assert found.within(limits) == bool(fast_drift.within_limits(wanted, limits)[e])


def fast_reading(
    active: DefendedModel, trace: Trace, rows: int, sites: Sequence[Site]
) -> fast_drift.Reading:
    """Of each example's first row."""
    assert active.defense is not None
    latents = active.defense.latents
    z = {s: latents[s].read(trace.after[s])[::rows] for s in sites}
    p = {s: latents[s].preactivation(trace.after[s])[::rows] for s in sites}
    return fast_drift.Reading(z, p)


@torch.no_grad()
def fast(
    active: DefendedModel,
    examples: Sequence[Example],
    delta: ResidualDelta,
    task: Task | None = None,
) -> tuple[Output, Output, dict[str, fast_drift.ScopeDrift]]:
    """Perturbed and clean outputs, and drift."""
    target, defense = active.target, active.defense
    assert defense is not None
    pool = None if task is None else task.pool
    laid, sites = target.batch(examples), tuple(defense.latents)
    bare = DefendedModel(target, None)
    outputs, readings = [], []
    for model, moved in ((active, None), (active, delta), (bare, None)):
        trace = Trace()
        edits = model.edits(laid, moved, trace, sites)
        outputs.append(forward(target, laid, edits, pool=pool, distribution=pool is None))
        readings.append(fast_reading(active, trace, laid.rows_per_example, sites))
    scopes = fast_drift.scopes(laid, delta.positions_EP)
    reference, recovered, _ = readings
    found = fast_drift.drift(reference, recovered, defense.latents, scopes, typical(defense))
    return outputs[1], outputs[2], found


def typical(defense: Intervention) -> dict[Site, float]:
    """Another one at each site, so that none stands for another's."""
    return {site: 2.0 + i for i, site in enumerate(defense.latents)}


def delta_at(
    sites: Sequence[Site], positions: Sequence[Sequence[int]], size: float
) -> ResidualDelta:
    each = [random_delta(site, positions, seed=i) for i, site in enumerate(sites)]
    values = {site: size * d.values[site] for site, d in zip(sites, each, strict=True)}
    return ResidualDelta(values, each[0].positions_EP)


@cache
def tiny_plain(architecture: str) -> PlainModel:
    target = shared_target(architecture, DEFENDED)
    return plain_model(tiny_model(architecture), target.dictionaries)


@pytest.mark.parametrize("threat_model", get_args(ThreatModel))
@pytest.mark.parametrize("long_answers", [False, True], ids=["one-token", "long"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_drift_of_tiny_models(
    architecture: str, long_answers: bool, threat_model: ThreatModel
) -> None:
    """Several defended sites, deltas at two sites and at several positions."""
    target, model = shared_target(architecture, DEFENDED), tiny_plain(architecture)
    defense = clamp(target, DEFENDED)
    active = DefendedModel(target, defense, threat_model)
    examples = prompts(long_answers=long_answers)
    for size in (0.0, 0.02, 1.0):
        moved = [Site.parse(site) for site in (DEFENDED[2], DEFENDED[4])]
        delta = delta_at(moved, POSITIONS["several"], size)
        output, _, drifted = fast(active, examples, delta)
        assert output.logprobs_EV is not None
        for e, example in enumerate(examples):
            conditions = Conditions(defense, delta.rows(torch.tensor([e])), threat_model)
            plain = model.output(example, conditions)
            agree(plain.scores_EC[0], output.scores_EC[e, : len(example.candidates)])
            assert plain.logprobs_EV is not None
            agree(plain.logprobs_EV[0], output.logprobs_EV[e])
            places = POSITIONS["several"][e]
            found = drift_of(model, example, conditions, places, typical(defense))
            agreeing_drift(found, drifted, e)


@pytest.mark.parametrize("insertion", [0, 4, 7])
def test_drift_of_a_prompt_with_a_suffix_leaves_the_suffix_out(insertion: int) -> None:
    """Behind the prompt, the suffix's last token stands for the prompt's last one."""
    target, model = shared_target("gpt2", DEFENDED), tiny_plain("gpt2")
    active = DefendedModel(target, clamp(target, DEFENDED))
    assert active.defense is not None
    example = prompts(long_answers=False)[0]
    at = max(1, insertion)
    longer = example.with_inserted(at, (41, 42, 43))
    assert len(example.prompt) == 7
    wanted = {1: [0, 4, 5, 6, 7, 8, 9], 4: [0, 1, 2, 3, 7, 8, 9], 7: [0, 1, 2, 3, 4, 5, 9]}[at]
    scale = typical(active.defense)
    found = drift_of(model, example, Conditions(active.defense), [6], scale, inserted=(longer, at))
    sites = tuple(active.defense.latents)
    readings: list[fast_drift.Reading] = []
    for shown in (example, longer):
        trace, laid = Trace(), target.batch([shown])
        with torch.no_grad():
            forward(target, laid, active.edits(laid, None, trace, sites))
        readings.append(fast_reading(active, trace, 1, sites))
    before, after = readings
    after = after.at(torch.tensor([wanted]))
    scopes = fast_drift.scopes(target.batch([example]), torch.tensor([[6]]))
    expected = fast_drift.drift(before, after, active.defense.latents, scopes, scale)
    agreeing_drift(found, expected, 0)


# --- the embedded organism under its own defenses ----------------------------------------------

PAIRS = (
    ("ioi", "clamp"),
    ("ioi", "ablation"),
    ("ioi", "steering"),
    ("ioi", "reconstruction"),
    ("ioi", "trajectory"),
    ("unlearning", "subspace"),
    ("unlearning", "multilayer"),
    ("tpp", "clamp"),
    ("refusal", "clamp"),
)
SHOWN = 4  # examples


@cache
def organism() -> tuple[Target, PlainModel]:
    return load_target("organism", "cpu"), load_plain(preset("organism"))


@cache
def fitted(task_name: str, defense_name: str) -> tuple[Task, Defense]:
    target, _ = organism()
    own = preset("organism").tasks[task_name]
    task = cast(Task, registry.create("task", task_name, own.task)).variants()[0]
    settings = own.defenses[defense_name]
    defense = cast(Defense, registry.create("defense", defense_name, settings))
    with torch.no_grad():
        task.fit(target, target.site_for(task.name, defense.config.site))
    defense.fit(target, task)
    return task, defense


@pytest.mark.parametrize("threat_model", get_args(ThreatModel))
@pytest.mark.parametrize(("task_name", "defense_name"), PAIRS)
def test_organism(task_name: str, defense_name: str, threat_model: ThreatModel) -> None:
    """Objective, verdicts, fidelity, texts and drift, as a task is shown them."""
    target, model = organism()
    task, defense = fitted(task_name, defense_name)
    active = DefendedModel(target, defense, threat_model)
    examples = task.examples(target, "evaluation")[:SHOWN]
    positions = [list(task.positions(e)) for e in examples]
    width = max(map(len, positions))
    positions_EP = torch.tensor([[*p, *[-1] * (width - len(p))] for p in positions])
    drawn = torch.Generator().manual_seed(0)
    D = target.embedding.weight.shape[1]
    values = 0.5 * torch.randn(*positions_EP.shape, D, generator=drawn)
    delta = ResidualDelta({min(defense.latents): values}, positions_EP)
    output, clean, drifted = fast(active, examples, delta, task)
    texts: dict[str, tuple[str, ...]] = {}
    if task.new_tokens:
        texts["recovered"] = written(active, examples, task.new_tokens, delta)
        bare = DefendedModel(target, None)
        texts["clean"] = written(bare, examples, task.new_tokens)
    for e, example in enumerate(examples):
        conditions = Conditions(defense, delta.rows(torch.tensor([e])), threat_model)
        found, undisturbed = (
            model.output(example, c, pool=task.pool, new_tokens=task.new_tokens)
            for c in (conditions, Conditions())
        )
        wanted = of(output, e, texts.get("recovered"))
        bare_output = of(clean, e, texts.get("clean"))
        assert found.texts == wanted.texts
        assert undisturbed.texts == bare_output.texts
        agree(found.scores_EC, wanted.scores_EC)
        if task.pool is not None:
            agree(found.pooled_ED, wanted.pooled_ED)
        agree(task.objective(found), task.objective(wanted))
        assert torch.equal(task.behaviour(found), task.behaviour(wanted))
        assert torch.equal(task.stopped(found), task.stopped(wanted))
        agree(task.fidelity(found, undisturbed), task.fidelity(wanted, bare_output))
        for least in (0.2, 0.5, 0.8):
            near = task.base_like(found, undisturbed, least)
            assert torch.equal(near, task.base_like(wanted, bare_output, least))
        drift = drift_of(model, example, conditions, positions[e], typical(defense))
        agreeing_drift(drift, drifted, e)


def of(output: Output, e: int, texts: tuple[str, ...] | None) -> Output:
    """One example's part of an output, with its text."""
    example = output.examples[e]
    logprobs_EV, pooled_ED = (
        None if t is None else t[e : e + 1] for t in (output.logprobs_EV, output.pooled_ED)
    )
    scores_EC = output.scores_EC[e : e + 1, : len(example.candidates)]
    text = None if texts is None else texts[e : e + 1]
    return Output((example,), scores_EC, logprobs_EV, pooled_ED, text)


# --- readings and loading ------------------------------------------------------------------------

FEATURES = [3, 1, 50, 7, 95, 20]


def assert_same_reading(sae: Any, ours: Any, resid_TD: Tensor) -> None:
    latents = ours.defended(torch.tensor(FEATURES))
    z_TS, p_TS = read_latents(sae, resid_TD, FEATURES)
    agree(latents.read(resid_TD), z_TS)
    agree(latents.preactivation(resid_TD), p_TS)
    agree(latents.decoder_SD, decoder_rows(sae, FEATURES))
    assert (z_TS != 0).any()


@pytest.mark.parametrize(("architecture", "normalisation", "extra"), CASES)
def test_readings_of_every_architecture(
    architecture: str, normalisation: str, extra: dict[str, Any]
) -> None:
    sae = random_sae(architecture, normalisation, **extra)
    ours = from_state(sae.cfg.to_dict(), sae.state_dict(), SAE_SITE)
    for resid_TD in residual():  # one after another: nothing is left over from the pass before
        assert_same_reading(sae, ours, resid_TD)


def test_metadata_that_saelens_drops_still_count(tmp_path: Path) -> None:
    """Nested and without a version: SAELens would not know that the residual is to be centred."""
    kwargs = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    random_sae("standard", metadata=kwargs).save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text("utf-8"))
    del config["metadata"]["sae_lens_version"]
    (tmp_path / "cfg.json").write_text(json.dumps(config), "utf-8")
    chosen = preset("organism").model_copy(update={"saes": {str(SAE_SITE): str(tmp_path)}})
    sae = load_plain(chosen).saes[SAE_SITE]
    assert_same_reading(sae, load_dictionary(tmp_path, SAE_SITE), residual()[0] + 1)


def test_gemma_scope_folders(tmp_path: Path) -> None:
    sae = random_sae("jumprelu", apply_b_dec_to_input=False)
    np.savez(tmp_path / "params.npz", **{k: v.numpy() for k, v in sae.state_dict().items()})
    chosen = preset("organism").model_copy(update={"saes": {str(SAE_SITE): str(tmp_path)}})
    plain = load_plain(chosen, [SAE_SITE])
    assert_same_reading(plain.saes[SAE_SITE], load_dictionary(tmp_path, SAE_SITE), residual()[0])


def test_only_the_wanted_saes_are_read_and_the_model_is_its_own() -> None:
    target, _ = organism()
    site = Site.parse(SITES[1])
    plain = load_plain(preset("organism"), [site])
    assert list(plain.saes) == [site]
    assert plain.model is not target.model
    assert plain.model.config._attn_implementation == "eager"


def test_an_sae_that_saelens_cannot_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{", "utf-8")
    chosen = preset("organism").model_copy(update={"saes": {str(SAE_SITE): str(tmp_path)}})
    with pytest.raises(UserError, match="SAELens cannot read"):
        load_plain(chosen)


# --- what is refused --------------------------------------------------------------------------


def test_the_fast_engines_own_model_is_refused() -> None:
    with pytest.raises(ValueError, match="eager"):
        PlainModel(shared_target("gpt2").model, None, {})


def test_a_delta_of_several_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="one example"):
        Conditions(delta=random_delta(Site.parse(SITES[0]), POSITIONS["several"]))


def test_hook_points_inside_unknown_blocks_are_refused() -> None:
    model = plain_model(tiny_model("llama")).model
    model.config.model_type = "unheard_of"
    hooks = {Site(0, "hook_attn_out"): lambda resid: resid}
    with pytest.raises(UserError, match="unheard_of"), replaced(model, hooks):
        pass


def test_no_residual_between_parallel_attention_and_mlp() -> None:
    hooks = {Site(0, "hook_resid_mid"): lambda resid: resid}
    with pytest.raises(UserError, match="parallel"), replaced(tiny_plain("neox").model, hooks):
        pass


def test_drift_without_a_defense_is_refused() -> None:
    with pytest.raises(ValueError, match="defense"):
        drift_of(tiny_plain("gpt2"), prompts(long_answers=False)[0], Conditions(), [6], {})
