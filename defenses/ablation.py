"""`ablation`: defended latents are set to zero, and the SAE error is kept."""

from __future__ import annotations

from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense
from saebench_recovery.registry import register_defense


@register_defense("ablation")
class Ablation(Defense):
    """h - z W_dec over the defended latents."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        latents = self.latents[site]
        return latents.write(resid_BTD, -latents.read(resid_BTD))
