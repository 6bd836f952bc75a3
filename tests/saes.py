"""Random SAEs of `sae_lens` itself, to hold our readings against."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site

D, M = 48, 96
SITE = Site.parse("blocks.1.hook_resid_post")


def random_sae(architecture: str, normalisation: str = "none", **extra: Any) -> Any:
    """A sae_lens SAE whose every weight is random, on the scale of real ones."""
    from sae_lens import SAE

    metadata = {"hook_name": str(SITE), "sae_lens_version": "6.54.0", **extra.pop("metadata", {})}
    cfg = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": M,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": normalisation,
        "metadata": metadata,
        **extra,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about model_from_pretrained_kwargs
        sae = SAE.from_dict(cfg)
    generator = torch.Generator().manual_seed(0)
    for weight in sae.parameters():
        size = 0.5 if weight.ndim == 1 else weight.shape[0] ** -0.5
        weight.data = torch.randn(weight.shape, generator=generator) * size
    if architecture == "jumprelu":
        sae.threshold.data.abs_()
    return sae.eval().requires_grad_(False)


def residual(*, requires_grad: bool = False) -> Tensor:
    x_BTD = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
    return x_BTD.requires_grad_(requires_grad)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
