"""`clamp`: defended latents are set to a value, or multiplied, and the SAE error is kept."""

from __future__ import annotations

from saebench_recovery.defenses._clamping import ClampingDefense
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.registry import register_defense


@register_defense("clamp")
class Clamp(ClampingDefense):
    """h + (z' - z) W_dec over the defended latents (arXiv 2606.18322, defended state)."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamped(site, resid_BTD)
