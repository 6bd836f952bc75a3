"""Every architecture and normalisation of SAELens is in docs/targets.md and is treated as it says.

A release of SAELens with a new architecture, normalisation or setting fails here, before an SAE of
it can be misread.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from sae_lens import registry
from sae_lens.saes.sae import SAEConfig

from saebench_recovery.base.errors import UserError
from saebench_recovery.sae.files import from_state, load_dictionary
from tests.saes import SITE, D, M, close, random_sae, residual

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"
TABLE: dict[str, str] = dict(re.findall(r"^\| `(\w+)` \| ([\w-]+)", PAGE.read_text("utf-8"), re.M))
INFERENCE, TRAINING = registry.SAE_CLASS_REGISTRY, registry.SAE_TRAINING_CLASS_REGISTRY
ANNOTATED = set(get_args(get_type_hints(SAEConfig)["normalize_activations"]))
NORMALISATIONS = ANNOTATED | {"constant_norm_rescale"}  # accepted, but not in the annotation
NEEDED: dict[str, dict[str, Any]] = {
    "topk": {"k": 8},
    "abstopk": {"k": 8},
    "temporal": {"n_heads": 2, "kval_topk": 8, "bottleneck_factor": 4},
    **{name: {"d_out": D, "apply_b_dec_to_input": False} for name in TABLE if "transcoder" in name},
}
# What `sae_files` knows how to read; another setting could change what an SAE computes.
SETTINGS = {"d_in", "d_sae", "dtype", "device", "metadata"} | {
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
}
OWN_SETTINGS = {name: {"k", "rescale_acts_by_decoder_norm"} for name in ("topk", "abstopk")}


def test_the_table_is_complete() -> None:
    assert TABLE.keys() == {*INFERENCE, *TRAINING, *NORMALISATIONS}


@pytest.mark.parametrize("architecture", INFERENCE)
def test_an_architecture_is_read_as_the_table_says(architecture: str) -> None:
    sae = random_sae(architecture, **NEEDED.get(architecture, {}))
    cfg, state = sae.cfg.to_dict(), sae.state_dict()
    if TABLE[architecture] == "refused":
        with pytest.raises(UserError, match=f"unsupported SAE architecture '{architecture}' \\(it"):
            from_state(cfg, state, SITE)
        return
    ours = from_state(cfg, state, SITE)
    close(ours.encode(residual()), sae.encode(residual()))
    assert ours.defended(torch.arange(4)).exactness == TABLE[architecture]
    known = {field.name for field in fields(INFERENCE[architecture][1])}
    assert known == SETTINGS | OWN_SETTINGS.get(architecture, set())


# An architecture that is refused for inference has no export to read.
@pytest.mark.parametrize(
    "architecture", [a for a in TRAINING if not (a in INFERENCE and TABLE[a] == "refused")]
)
def test_a_training_class_is_read_as_it_is_exported(architecture: str, tmp_path: Path) -> None:
    from sae_lens import SAE, TrainingSAE

    config = registry.get_sae_training_class(architecture)[1]
    shape = {"d_in": D, "d_sae": M, "metadata": {"hook_name": str(SITE), "sae_lens_version": "6"}}
    own: dict[str, Any] = {"k": 8} if "topk" in architecture else {}
    if architecture == "matryoshka_batchtopk":
        own["matryoshka_widths"] = [M // 2, M]
    sae = TrainingSAE.from_dict(config.from_dict({**shape, **own}).to_dict())
    if "batchtopk" in architecture:
        sae.topk_threshold.fill_(0.01)
    sae.save_inference_model(tmp_path)
    ours = load_dictionary(tmp_path, SITE)
    z = SAE.load_from_disk(tmp_path).encode(residual())
    assert (z != 0).any()
    close(ours.encode(residual()), z)
    if architecture not in INFERENCE:
        sae.save_model(tmp_path)
        with pytest.raises(UserError, match=f"'{architecture}' .*save_inference_model"):
            load_dictionary(tmp_path, SITE)


@pytest.mark.parametrize("normalisation", sorted(NORMALISATIONS))
def test_a_normalisation_is_read_as_the_table_says(normalisation: str) -> None:
    sae = random_sae("jumprelu", normalisation)
    if TABLE[normalisation] == "exact":
        ours = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE)
        close(ours.encode(residual()), sae.encode(residual()))
    else:
        with pytest.raises(UserError, match=f"normalisation '{normalisation}' is not folded"):
            from_state(sae.cfg.to_dict(), sae.state_dict(), SITE)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_folded_normalisation_is_read(architecture: str) -> None:
    """As SAELens folds the factor of a release, and whitening at the end of training."""
    x, factor = residual(), 0.37
    mean, drawn = torch.randn(D), torch.Generator().manual_seed(2)
    whiten = torch.eye(D) + 0.1 * torch.randn(D, D, generator=drawn)
    for b_dec in (True, False):
        averaged = random_sae(architecture, apply_b_dec_to_input=b_dec)
        z = averaged.encode(x * factor)
        averaged.cfg.normalize_activations = "expected_average_only_in"
        averaged.fold_activation_norm_scaling_factor(factor)
        close(from_state(averaged.cfg.to_dict(), averaged.state_dict(), SITE).encode(x), z)

        whitened = random_sae(architecture, apply_b_dec_to_input=b_dec)
        z = whitened.encode((x - mean) @ whiten)
        whitened.cfg.normalize_activations = "covariance_whitening"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whitened.fold_activation_whitening(mean, whiten, torch.linalg.inv(whiten))
        ours = from_state(whitened.cfg.to_dict(), whitened.state_dict(), SITE)
        torch.testing.assert_close(ours.encode(x), z, rtol=1e-4, atol=1e-4)
