"""`subspace`: the clamp, and the defended encoder directions pinned to what it asks for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from saebench_recovery.defenses._clamping import ClampingDefense
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Task
from saebench_recovery.registry import register_defense
from saebench_recovery.sae.latents import SMALLEST_NORM, Latents
from saebench_recovery.targets.target import Target

LARGEST_SHARE = 0.9


@register_defense("subspace")
class Subspace(ClampingDefense):
    """Clamps, then moves the residual inside span(A) until its readings are the clamp's wish.

    A clamp moves x along decoder rows, and the encoder columns A then read something else than
    was asked for. With the pre-activations p(x) = A^T N(x) + b and the wish p* (p(x) where the
    clamp changes nothing), the result is

        y = u + s A+^T (p* - b),   u = (I - A A+) (x + clamp),   s the scale of N at y,

    so that p(y) = p*: A+ is the pseudo-inverse, factorised once in float64. Without input
    normalisation s = 1. With it s = |y| / sqrt(k), whose closed form is
    s^2 = |u|^2 / (k - |A+^T (p* - b)|^2), with k = D, or D - 1 for the unbiased deviation of
    layer_norm (whose epsilon is neglected). No residual of any norm reads a wish that makes the
    denominator negative: A+^T (p* - b) is cut so that at most `LARGEST_SHARE` of |y|^2 is in
    span(A).
    """

    _pinv_SD: Mapping[Site, Tensor]

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        self._pinv_SD = {
            site: torch.linalg.pinv(latents.columns_DS.double()).float()
            for site, latents in self.latents.items()
        }

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        latents, pinv_SD = self.latents[site], self._pinv_SD[site]
        reading_BTS = self._wanted(latents, resid_BTD) - latents.bias_S
        clamped_BTD = self.clamped(site, resid_BTD).float()
        # (A A+) is symmetric; it does not see the mean where the columns are centred.
        inside_BTD = (clamped_BTD @ latents.columns_DS) @ pinv_SD
        rest_BTD, pinned_BTD = clamped_BTD - inside_BTD, reading_BTS @ pinv_SD
        if not latents.affine:
            pinned_BTD = _scaled(latents, rest_BTD, pinned_BTD)
        return (rest_BTD + pinned_BTD).to(resid_BTD.dtype)

    def _wanted(self, latents: Latents, resid_BTD: Tensor) -> Tensor:
        """Pre-activations [B, T, S] that give the clamp's activations."""
        p_BTS, z_BTS = latents.preactivation(resid_BTD), latents.read(resid_BTD)
        wish_BTS = self.wish(z_BTS)
        return torch.where(wish_BTS == z_BTS, p_BTS, latents.inverse(wish_BTS))


def _scaled(latents: Latents, rest_BTD: Tensor, reading_BTD: Tensor) -> Tensor:
    """The reading times the SAE's scale at rest + scale * reading, which are orthogonal."""
    if latents.centred:
        rest_BTD = rest_BTD - rest_BTD.mean(-1, keepdim=True)
    k = rest_BTD.shape[-1] - (latents.normalisation == "layer_norm")
    square_BT1 = reading_BTD.square().sum(-1, keepdim=True)
    cut_BT1 = (LARGEST_SHARE * k / square_BT1.clamp(min=SMALLEST_NORM)).clamp(max=1)
    scale_BT1: Tensor = rest_BTD.norm(dim=-1, keepdim=True) / (k - cut_BT1 * square_BT1).sqrt()
    return cut_BT1.sqrt() * scale_BT1 * reading_BTD
