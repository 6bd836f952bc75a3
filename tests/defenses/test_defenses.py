"""Each built-in defense: pure, differentiable, and what its own docstring promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from saebench_recovery.defenses.conditional import Conditional
from saebench_recovery.defenses.paired_shift import PairedShift
from saebench_recovery.defenses.reconstruction import Reconstruction
from saebench_recovery.defenses.subspace import Subspace
from saebench_recovery.defenses.trajectory import Trajectory

from saebench_recovery import registry
from saebench_recovery.base.catalogue import BUILT_IN
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense, Example, Split
from saebench_recovery.perturbations.constraints import Tangent, gradients
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.targets.target import Target
from tests.tiny import SITES, WIDTH, TinyTask, shared_target, tiny_dictionary, tiny_target

DEFENSES = tuple(BUILT_IN["defense"])
SITE, LATER = map(Site.parse, SITES)
NORMALISING = ("layer_norm", "constant_norm_rescale")


class NothingRetained(TinyTask):
    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        return [] if split == "retain" else super().examples(target, split)


def made(name: str, **config: Any) -> Defense:
    found = registry.create("defense", name, {"latents": 8, **config})
    assert isinstance(found, Defense)
    return found


@cache
def fitted(name: str) -> Defense:
    defense = made(name)
    defense.fit(shared_target("llama"), TinyTask())
    return defense


def resid(*shape: int) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(77)  # not the dictionaries': those rows are decoder rows
    return torch.randn(*shape, WIDTH, generator=drawn)


def places() -> Iterator[tuple[str, Site]]:
    for name in DEFENSES:
        yield name, SITE
    yield from (("multilayer", LATER), ("trajectory", LATER))


@pytest.mark.parametrize(("name", "site"), list(places()))
class TestEveryDefense:
    def test_is_pure_and_keeps_shape_and_dtype(self, name: str, site: Site) -> None:
        x = resid(3, 5)
        kept = x.clone()
        first, again = (fitted(name).intervene(site, x) for _ in range(2))
        assert torch.equal(first, again)
        assert torch.equal(x, kept)
        assert first.shape == x.shape
        assert not torch.equal(first, x)
        half = fitted(name).intervene(site, x.bfloat16())
        assert half.dtype == torch.bfloat16

    def test_sees_each_token_alone(self, name: str, site: Site) -> None:
        x = resid(3, 5)
        whole = fitted(name).intervene(site, x)
        one = fitted(name).intervene(site, x[1:2, 2:3])
        torch.testing.assert_close(one, whole[1:2, 2:3], rtol=1e-5, atol=1e-5)

    def test_its_gradient_is_that_of_finite_differences(self, name: str, site: Site) -> None:
        x, direction, weight = resid(1, 30), resid(2, 30)[1:], resid(3, 30)[2:]
        step, leaf = 1e-3, x.clone().requires_grad_()
        ends = [x + step * direction, x - step * direction]
        # Thresholded activations jump; only tokens at which none does are compared.
        on = [fitted(name).latents[site].dictionary.encode(end) > 0 for end in ends]
        weight = weight * (on[0] == on[1]).all(-1, keepdim=True)
        assert (weight != 0).float().mean() > 0.8
        out = fitted(name).intervene(site, leaf)
        (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
        high, low = (fitted(name).intervene(site, end).double() * weight for end in ends)
        measured = (high - low).sum(-1) / (2 * step)
        torch.testing.assert_close(
            (grad * direction).sum(-1).double(), measured, rtol=2e-2, atol=2e-2
        )


def normalising(normalisation: Any) -> Target:
    """A target whose SAEs normalise their input."""
    target = tiny_target("gpt2")
    for site, sae in target.dictionaries.items():
        centred = normalisation == "layer_norm"
        encoder = sae.encoder_DM - sae.encoder_DM.mean(0) if centred else sae.encoder_DM
        changed = replace(sae, normalisation=normalisation, centred=centred, encoder_DM=encoder)
        target.dictionaries[site] = changed  # type: ignore[index]
    return target


class TestReconstruction:
    def test_passes_only_what_the_dictionary_can_write(self) -> None:
        narrow = tiny_target("gpt2")
        few = tiny_dictionary(SITE, latents=12)
        narrow.dictionaries[SITE] = replace(few, decoder_bias_D=resid(1)[0])  # type: ignore[index]
        defense = Reconstruction(Reconstruction.Config(latents=4))
        defense.fit(narrow, TinyTask())
        out = defense.intervene(SITE, resid(2, 3)) - resid(1)[0]
        basis = torch.linalg.qr(few.decoder_MD.T).Q
        torch.testing.assert_close((out @ basis) @ basis.T, out, rtol=1e-4, atol=1e-5)

    def test_is_the_clamp_less_the_error(self) -> None:
        defense, x = fitted("reconstruction"), resid(2, 3)
        assert isinstance(defense, Reconstruction)
        sae: Dictionary = defense.latents[SITE].dictionary
        error = x - sae.decode(sae.encode(x), x)
        wanted = defense.clamped(SITE, x) - error
        torch.testing.assert_close(defense.intervene(SITE, x), wanted, rtol=1e-4, atol=1e-5)


class TestSubspace:
    @pytest.mark.parametrize("normalisation", ["none", *NORMALISING])
    @pytest.mark.parametrize("config", [{}, {"multiplier": 0.5}, {"value": 0.8}])
    def test_the_encoder_reads_what_the_clamp_asks_for(
        self, normalisation: str, config: dict[str, float]
    ) -> None:
        defense = Subspace(Subspace.Config(latents=8, **config))
        defense.fit(normalising(normalisation), TinyTask())
        latents, x = defense.latents[SITE], 8 * resid(4, 6)
        p, z, after = latents.preactivation(x), latents.read(x), defense.intervene(SITE, x)
        on = z > 0
        assert on.any()
        wanted = torch.where(on, defense.wish(z), p)
        # Under normalisation, some wishes ask for more than the whole residual can read.
        asked = ((wanted - latents.bias_S) @ torch.linalg.pinv(latents.columns_DS)).square().sum(-1)
        possible = asked < (0.9 * (WIDTH - 1) if normalisation != "none" else torch.inf)
        assert possible.float().mean() > 0.7
        reads = latents.preactivation(after)
        torch.testing.assert_close(reads[possible], wanted[possible], rtol=0, atol=1e-4)
        # The plain clamp does not: decoder rows are not dual to encoder columns.
        assert (latents.preactivation(defense.clamped(SITE, x)) - wanted).abs().max() > 0.1

    @pytest.mark.parametrize("normalisation", ["none", *NORMALISING])
    def test_moves_only_inside_the_span_of_the_encoder_columns(self, normalisation: str) -> None:
        defense = Subspace(Subspace.Config(latents=8))
        defense.fit(normalising(normalisation), TinyTask())
        x = 8 * resid(4, 6)
        moved = defense.intervene(SITE, x) - defense.clamped(SITE, x)
        basis = torch.linalg.qr(defense.latents[SITE].columns_DS).Q
        torch.testing.assert_close((moved @ basis) @ basis.T, moved, rtol=1e-4, atol=1e-3)

    def test_a_wish_that_no_residual_reads_does_not_blow_the_residual_up(self) -> None:
        defense = Subspace(Subspace.Config(latents=8, value=1e3))
        defense.fit(normalising("constant_norm_rescale"), TinyTask())
        x = 8 * resid(4, 6)
        rest = (x - defense.intervene(SITE, x)).norm(dim=-1)
        assert (rest < 1e4 * x.norm(dim=-1)).all()


class TestSeveralSites:
    def test_multilayer_defends_the_default_sites_with_latents_of_their_own(self) -> None:
        found = fitted("multilayer").features
        assert list(found) == [SITE, LATER]
        assert all(len(features) == 8 for features in found.values())

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"sites": list(SITES), "site": SITES[0]}, "not both"),
            ({"features": [1, 2]}, "several"),
            ({"site": SITES[1]}, "two sites"),
            ({"sites": [SITES[1], SITES[1]]}, "two sites"),
            ({"sites": [SITES[0], "blocks.3.hook_resid_post"]}, "no SAE"),
        ],
    )
    def test_multilayer_refuses_what_is_not_several_sites(
        self, config: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(UserError, match=reason):
            made("multilayer", **config).fit(shared_target("llama"), TinyTask())

    def test_behind_the_pooled_site_nothing_is_defended(self) -> None:
        task = TinyTask()
        task.pool = SITE
        for name in ("multilayer", "trajectory"):
            with pytest.raises(UserError, match="after"):
                made(name).fit(shared_target("llama"), task)
        with pytest.raises(UserError, match="a later site does nothing"):
            made("multilayer", sites=list(SITES)).fit(shared_target("llama"), task)

    def test_trajectory_only_lowers_its_later_latents_and_only_above_the_ceiling(self) -> None:
        defense = fitted("trajectory")
        assert isinstance(defense, Trajectory)
        latents, x = defense.latents[LATER], 3 * resid(6, 8)
        change = (defense.intervene(LATER, x) - x) @ torch.linalg.pinv(latents.decoder_SD)
        excess = torch.relu(latents.read(x) - defense._ceiling[LATER])
        assert (excess > 0).any()
        torch.testing.assert_close(change, -excess, rtol=1e-3, atol=1e-3)

    def test_trajectory_needs_a_later_site(self) -> None:
        with pytest.raises(UserError, match="later sites"):
            made("trajectory", site=SITES[1]).fit(shared_target("llama"), TinyTask())


class TestConditional:
    def test_leaves_tokens_alone_at_which_the_gate_is_closed(self) -> None:
        defense, x = fitted("conditional"), resid(6, 8)
        assert isinstance(defense, Conditional)
        loud_BT = defense.latents[SITE].read(x).sum(-1)
        closed_BT = loud_BT <= defense._threshold[SITE]
        assert 0 < closed_BT.sum() < closed_BT.numel()
        out = defense.intervene(SITE, x)
        assert torch.equal(out[closed_BT], x[closed_BT])
        assert torch.equal(out[~closed_BT], defense.clamped(SITE, x)[~closed_BT])

    @pytest.mark.parametrize("opens", [0.0, 0.25])
    def test_opens_on_the_stated_share_of_retain_tokens(self, opens: float) -> None:
        target, defense = shared_target("llama"), made("conditional", opens=opens)
        defense.fit(target, TinyTask())
        assert isinstance(defense, Conditional)
        prompts = [e.prompt for e in TinyTask().examples(target, "retain")]
        seen = torch.cat([x for _, x in content_residuals(target, SITE, prompts)])
        loud_N = defense.latents[SITE].read(seen).sum(-1)
        threshold = defense._threshold[SITE]
        share, lower = ((loud_N > t).double().mean() for t in (threshold, 0.99 * threshold))
        assert share <= opens < lower

    def test_a_direction_opens_it_where_selection_prompts_are_told_from_retained_ones(self) -> None:
        target, task = shared_target("llama"), TinyTask()
        defense = made("conditional", gate="direction", opens=0.02)
        defense.fit(target, task)
        assert isinstance(defense, Conditional)
        open_share = {}
        for split in ("selection", "retain"):
            prompts = [e.prompt for e in task.examples(target, split)]
            x = torch.cat([x for _, x in content_residuals(target, SITE, prompts)])[None]
            changed = (defense.intervene(SITE, x) != x).any(-1)
            open_share[split] = float(changed.double().mean())
        assert open_share["retain"] <= 0.02 < 0.3 < open_share["selection"]
        assert not defense.sees_only_latents
        assert fitted("conditional").sees_only_latents

    def test_a_direction_needs_something_to_tell_apart(self) -> None:
        with pytest.raises(UserError, match="nothing to tell apart"):
            made("conditional", gate="direction").fit(shared_target("llama"), NothingRetained())


class TestPairedShift:
    def test_writes_one_vector_where_a_shifted_latent_is_on(self) -> None:
        defense, x = fitted("paired-shift"), resid(6, 8)
        assert isinstance(defense, PairedShift)
        latents = defense.latents[SITE]
        written = defense.intervene(SITE, x) - x
        on = (latents.read(x) > 0).any(-1)
        assert 0 < on.sum() < on.numel()
        assert not written[~on].any()
        vector = (defense._shift[SITE] @ latents.decoder_SD).expand_as(written[on])
        torch.testing.assert_close(written[on], vector, rtol=1e-4, atol=1e-5)

    def test_finds_its_latents_itself(self) -> None:
        with pytest.raises(UserError, match="finds its latents itself"):
            made("paired-shift", features=[1, 2]).fit(shared_target("llama"), TinyTask())


def test_a_tangent_holds_what_a_reconstruction_reads_to_first_order() -> None:
    defense, x = fitted("reconstruction"), resid(2, 3)
    latents = defense.latents[SITE]

    def read(rows: torch.Tensor) -> torch.Tensor:
        return latents.preactivation(defense.intervene(SITE, rows))

    tangent = Tangent(gradients(read, x), 2, "")
    direction = resid(9, 3)[5:]
    kept = tangent.project(direction)
    assert tangent.rank == 8
    assert 0.5 * direction.norm() < kept.norm() <= direction.norm()
    rows = x.repeat_interleave(2, 0)
    small = 1e-4  # short of the thresholds, at which activations jump

    def moved(delta: torch.Tensor) -> float:
        return float((read(rows + small * delta) - read(rows)).norm())

    assert moved(kept) < 1e-2 * moved(direction)
    index = torch.tensor([3, 0])
    torch.testing.assert_close(tangent.rows(index).project(direction[index]), kept[index])
