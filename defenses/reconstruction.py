"""`reconstruction`: the clamp on what the SAE can express, and the SAE error dropped."""

from __future__ import annotations

from saebench_recovery.defenses._clamping import ClampingDefense
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.registry import register_defense


@register_defense("reconstruction")
class Reconstruction(ClampingDefense):
    """decode(z'), where z' are the SAE's activations with the defended ones clamped.

    Nothing passes that the SAE does not express, which closes the channel that a perturbation
    takes through the error; the way through the other latents stays open. Every pass reads the
    whole SAE, so the device holds it.
    """

    sees_only_latents = False

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        latents = self.latents[site]
        z_BTM = latents.dictionary.encode(resid_BTD)
        wish_BTS = self.wish(z_BTM[..., latents.features])
        clamped_BTM = z_BTM.index_copy(-1, latents.features, wish_BTS)
        return latents.dictionary.decode(clamped_BTM, resid_BTD).to(resid_BTD.dtype)
