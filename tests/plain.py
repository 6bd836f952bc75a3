"""The reference engine on a copy of a test's model, with SAELens's SAEs of its dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from saebench_recovery.base.sites import Site
from saebench_recovery.model.plain import PlainModel, eager
from saebench_recovery.model.plain_hooks import Replace, replaced
from saebench_recovery.sae.activations import Threshold
from saebench_recovery.sae.latents import Dictionary
from tests.tiny import TinyTokenizer


def plain_model(
    model: nn.Module, dictionaries: Mapping[Site, Dictionary] | None = None
) -> PlainModel:
    """A copy with the same weights and transformers' own eager attention."""
    saes = {site: sae_of(dictionary) for site, dictionary in (dictionaries or {}).items()}
    return PlainModel(eager(copy.deepcopy(model)), TinyTokenizer(), saes)


def plain_logits(
    plain: PlainModel, tokens: tuple[int, ...], edits: Mapping[Site, Replace]
) -> Tensor:
    """All logits [T, V] of one prompt with activations replaced."""
    with replaced(plain.model, edits):
        return plain.run(tokens).logits_TV


def sae_of(dictionary: Dictionary) -> Any:
    """A jumprelu dictionary without biases as an SAE of SAELens."""
    from sae_lens import SAE

    sae = SAE.from_dict(
        {
            "architecture": "jumprelu",
            "d_in": dictionary.d_model,
            "d_sae": dictionary.width,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "metadata": {"sae_lens_version": "6.54.0"},
        }
    )
    assert isinstance(dictionary.activation, Threshold)
    sae.W_enc.data = dictionary.encoder_DM.clone()
    sae.W_dec.data = dictionary.decoder_MD.clone()
    sae.b_enc.data = dictionary.bias_M.clone()
    sae.b_dec.data = dictionary.decoder_bias_D.clone()
    sae.threshold.data = dictionary.activation.threshold_M.clone()
    return sae.eval().requires_grad_(False)
