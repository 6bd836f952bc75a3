"""`clamp`: defended latents are set to a value, or multiplied, and the SAE error is kept."""

from __future__ import annotations

from torch import Tensor

from saebench_recovery.recovery.clamp import ClampingDefense
from saebench_recovery.registry import register_defense
from saebench_recovery.sites import Site


@register_defense("clamp")
class Clamp(ClampingDefense):
    """h + (z' - z) W_dec over the defended latents (arXiv 2606.18322, defended state)."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamped(site, resid_BTD)
