"""Our stateless SAE against sae_lens' own, for every architecture and normalisation."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.sae.files import from_state, load_dictionary
from saebench_recovery.sae.latents import Dictionary
from tests.saes import SITE, D, M, close, random_sae, residual

FEATURES = torch.tensor([3, 1, 50, 7, 95, 20])
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("standard", {}),
    ("jumprelu", {}),
    ("gated", {}),
    ("topk", {"k": 8, "rescale_acts_by_decoder_norm": False}),
    ("topk", {"k": 8, "rescale_acts_by_decoder_norm": True}),
    ("abstopk", {"k": 8, "rescale_acts_by_decoder_norm": True}),
)
CASES = [
    pytest.param(arch, norm, {**extra, "apply_b_dec_to_input": b}, id=f"{arch}-{norm}-{i}-{b}")
    for i, ((arch, extra), norm, b) in enumerate(
        product(ARCHITECTURES, NORMALISATIONS, (True, False))
    )
]


def saved(sae: Any, folder: Path) -> Dictionary:
    sae.save_model(folder)
    return load_dictionary(folder, SITE)


@pytest.mark.parametrize(("architecture", "normalisation", "extra"), CASES)
class TestAgainstSaeLens:
    def test_encode_decode_and_read(
        self, architecture: str, normalisation: str, extra: dict[str, Any], tmp_path: Path
    ) -> None:
        sae = random_sae(architecture, normalisation, **extra)
        ours = saved(sae, tmp_path)
        x = residual()
        z = sae.encode(x)
        recon = sae.decode(z)  # deletes sae_lens' normalisation statistics
        assert 0.02 < (z != 0).float().mean() < 0.98
        close(ours.encode(x), z)
        close(ours.decode(z, x), recon)
        close(ours.defended(FEATURES).read(x), z[..., FEATURES])

    def test_preactivation(
        self, architecture: str, normalisation: str, extra: dict[str, Any], tmp_path: Path
    ) -> None:
        sae = random_sae(architecture, normalisation, **extra)
        ours = saved(sae, tmp_path)
        x = residual()
        sae_in = sae.process_sae_in(x)
        p = sae_in @ sae.W_enc + (sae.b_gate if architecture == "gated" else sae.b_enc)
        if extra.get("rescale_acts_by_decoder_norm"):
            p = p * sae.W_dec.norm(dim=1)
        close(ours.preactivation(x), p)
        close(ours.defended(FEATURES).preactivation(x), p[..., FEATURES])

    def test_write_is_a_splice_that_keeps_the_error(
        self, architecture: str, normalisation: str, extra: dict[str, Any], tmp_path: Path
    ) -> None:
        sae = random_sae(architecture, normalisation, **extra)
        ours = saved(sae, tmp_path)
        x = residual()
        change = torch.randn(3, 5, len(FEATURES))
        z = sae.encode(x)
        before = sae.decode(z)
        z_changed = sae.encode(x)  # again: decode has deleted the statistics
        z_changed[..., FEATURES] += change
        close(ours.defended(FEATURES).write(x, change), x + sae.decode(z_changed) - before)

    def test_gradient_of_a_reading(
        self, architecture: str, normalisation: str, extra: dict[str, Any], tmp_path: Path
    ) -> None:
        sae = random_sae(architecture, normalisation, **extra)
        latents = saved(sae, tmp_path).defended(FEATURES)
        weight = torch.randn(len(FEATURES))
        theirs, ours = residual(requires_grad=True), residual(requires_grad=True)
        (expected,) = torch.autograd.grad(
            (sae.encode(theirs)[..., FEATURES] @ weight).sum(), theirs
        )
        (gradient,) = torch.autograd.grad((latents.read(ours) @ weight).sum(), ours)
        assert expected.abs().max() > 0
        close(gradient, expected)


@pytest.mark.parametrize(("architecture", "extra"), ARCHITECTURES)
@pytest.mark.parametrize("centre", [False, True])
def test_columns_are_all_that_an_affine_reading_sees(
    architecture: str, extra: dict[str, Any], centre: bool
) -> None:
    metadata = {"model_from_pretrained_kwargs": {"center_writing_weights": centre}}
    sae = random_sae(architecture, **extra, metadata=metadata)
    latents = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE).defended(FEATURES)
    q, _ = torch.linalg.qr(latents.columns_DS)
    step = torch.randn(3, 5, D) * 10
    step = step - step @ q @ q.T
    x = residual()
    assert latents.affine
    close(latents.preactivation(x + step), latents.preactivation(x))
    assert latents.exactness == ("first-order" if "topk" in architecture else "exact")
    assert bool(latents.note) == (latents.exactness == "first-order")
    if latents.exactness == "exact":
        close(latents.read(x + step), latents.read(x))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_centred_weights_are_read_from_the_raw_residual(normalisation: str, tmp_path: Path) -> None:
    metadata = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    sae = random_sae("jumprelu", normalisation, metadata=metadata)
    ours = saved(sae, tmp_path)
    x = residual()
    mean = x.mean(-1, keepdim=True)
    z = sae.encode(x - mean)
    close(ours.encode(x), z)
    close(ours.decode(z, x), sae.decode(z) + mean)
    close(ours.defended(FEATURES).columns_DS.sum(0), torch.zeros(len(FEATURES)))
    close(ours.preactivation(x + 7.0), ours.preactivation(x))


def test_reading_is_float32_whatever_the_model_and_writing_keeps_the_dtype() -> None:
    sae = random_sae("standard")
    latents = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE).defended(FEATURES)
    x = residual().bfloat16()
    assert latents.read(x).dtype == torch.float32
    close(latents.read(x), latents.read(x.float()))
    assert latents.write(x, torch.ones(3, 5, len(FEATURES))).dtype == torch.bfloat16


def test_tiny_residuals_are_normalised_with_the_same_epsilon() -> None:
    sae = random_sae("standard", "layer_norm")
    ours = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE)
    x = residual() * 1e-5
    z = sae.encode(x)
    close(ours.encode(x), z)
    torch.testing.assert_close(ours.decode(z, x), sae.decode(z), rtol=1e-4, atol=1e-9)


def test_no_change_writes_nothing() -> None:
    sae = random_sae("standard", "layer_norm")
    latents = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE).defended(FEATURES)
    x = residual()
    assert torch.equal(latents.write(x, torch.zeros(3, 5, len(FEATURES))), x)


def test_an_all_zero_residual_row_reads_finite_with_a_finite_gradient() -> None:
    for normalisation in ("none", "constant_norm_rescale"):
        sae = random_sae("standard", normalisation)
        latents = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE).defended(FEATURES)
        x = torch.zeros(1, 1, D, requires_grad=True)
        (gradient,) = torch.autograd.grad(latents.read(x).sum(), x)
        assert gradient.isfinite().all()


def test_half_precision_files_are_read_in_float32(tmp_path: Path) -> None:
    sae = random_sae("jumprelu").to(torch.float16)
    ours = saved(sae, tmp_path)
    latents = ours.defended(FEATURES)
    assert ours.encoder_DM.dtype == ours.decoder_MD.dtype == torch.float16  # as in the file
    assert latents.columns_DS.dtype == latents.decoder_SD.dtype == torch.float32
    close(ours.encode(residual()), sae.to(torch.float32).encode(residual()))


def test_everything_is_computed_on_the_device_that_is_asked_for() -> None:
    x = residual().to("meta")
    for architecture, extra in ARCHITECTURES:
        sae = random_sae(architecture, **extra)
        ours = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE, "meta")
        assert ours.encoder_DM.device.type == ours.decoder_MD.device.type == "cpu"
        z = ours.encode(x)
        for made in (z, ours.decode(z, x), ours.reconstruct(x), ours.defended(FEATURES).read(x)):
            assert made.device.type == "meta"


class TestRefusals:
    def edit(self, folder: Path, **changes: Any) -> Path:
        random_sae("standard").save_model(folder)
        cfg = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps({**cfg, **changes}))
        return folder

    def edit_weights(self, folder: Path, **changes: Tensor) -> Path:
        random_sae("standard").save_model(folder)
        file = folder / "sae_weights.safetensors"
        save_file({**load_file(file), **changes}, file)
        return folder

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"architecture": "temporal"}, "'temporal'.*other positions.*allowed: standard"),
            ({"architecture": "matching_pursuit"}, "'matching_pursuit'.*iterative"),
            ({"architecture": "transcoder"}, "'transcoder'"),
            ({"activation_fn": "tanh-relu"}, "'standard with tanh-relu'"),
            ({"architecture": "topk"}, "k=None"),
            ({"reshape_activations": "hook_z"}, "hook_z"),
            ({"normalize_activations": "expected_average_only_in"}, "not folded.*fold it"),
            ({"normalize_activations": "covariance_whitening"}, "not folded.*fold it"),
            ({"d_sae": 12}, "d_sae 12"),
            ({"metadata": {"hook_name": "blocks.2.hook_resid_post"}}, "'blocks.2.*not at blocks.1"),
            ({"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, "not at blocks.1"),
        ],
    )
    def test_configurations(self, changes: dict[str, Any], line: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=line) as refusal:
            load_dictionary(self.edit(tmp_path, **changes), SITE)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"W_dec": torch.zeros(D, M)}, r"W_dec is \[48, 96\].*\[96, 48\]"),
            ({"b_enc": torch.full((M,), torch.nan)}, "b_enc holds NaN"),
            ({"W_skip": torch.zeros(D, D)}, "this one has .*W_skip"),
            ({"W_enc": torch.zeros(D)}, r"should be \[d_in, d_sae\]"),
        ],
    )
    def test_weights(self, changes: dict[str, Tensor], line: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=line):
            load_dictionary(self.edit_weights(tmp_path, **changes), SITE)

    def test_missing_and_broken_files(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"cfg\.json is missing"):
            load_dictionary(tmp_path / "nowhere", SITE)
        folder = self.edit(tmp_path)
        (folder / "sae_weights.safetensors").write_bytes(b"damaged")
        with pytest.raises(UserError, match="cannot read "):
            load_dictionary(folder, SITE)
        (folder / "sae_weights.safetensors").unlink()
        with pytest.raises(UserError, match=r"no SAE at .*: sae_weights\.safetensors is missing"):
            load_dictionary(folder, SITE)


@pytest.mark.parametrize(
    ("trained", "site"),
    [
        ("blocks.2.hook_resid_pre", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"),
        ("model.layers.1.output", "blocks.1.hook_resid_post"),
        ("transformer.h.1", "blocks.1.hook_resid_post"),
        (None, "blocks.3.hook_mlp_out"),
    ],
)
def test_names_of_the_same_hook_point(trained: str | None, site: str) -> None:
    sae = random_sae("standard", metadata={"hook_name": trained})
    assert from_state(sae.cfg.to_dict(), sae.state_dict(), Site.parse(site)).site == Site.parse(
        site
    )


def test_flat_metadata_of_saelens_5_is_read() -> None:
    sae = random_sae("topk", k=8)
    flat = {
        "d_in": D,
        "d_sae": M,
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 8},
        "hook_name": "blocks.1.hook_resid_post",
        "normalize_activations": "none",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    ours = from_state(flat, sae.state_dict(), SITE)
    x = residual()
    close(ours.encode(x), sae.encode(x - x.mean(-1, keepdim=True)))
    with pytest.raises(UserError, match="not at"):
        from_state({**flat, "hook_name": "blocks.7.hook_resid_post"}, sae.state_dict(), SITE)
