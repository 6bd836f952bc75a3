"""`clamp`: defended latents are set to a value, or multiplied, and the SAE error is kept."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from saebench_recovery.interfaces import Defense
from saebench_recovery.registry import register_defense
from saebench_recovery.sites import Site


@register_defense("clamp")
class Clamp(Defense):
    """h + (z' - z) W_dec over the defended latents (arXiv 2606.18322, defended state)."""

    class Config(Defense.Config):
        value: float | tuple[float, ...] | None = Field(
            default=None, description="new activation, one for all or one per latent"
        )
        multiplier: float | tuple[float, ...] | None = Field(
            default=None, description="factor on the activation, one for all or one per latent"
        )
        positive_only: bool = Field(default=True, description="leave inactive latents alone")

        @model_validator(mode="after")
        def _one_mode(self) -> Self:
            if self.value is not None and self.multiplier is not None:
                raise ValueError("give value or multiplier, not both")
            for setting in (self.value, self.multiplier):
                if isinstance(setting, tuple) and len(setting) != self.latents:
                    raise ValueError(f"{len(setting)} numbers given for {self.latents} latents")
            return self

    config: Config

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        latents = self.latents[site]
        z_BTS = latents.read(resid_BTD)
        if self.config.value is not None:
            new_BTS = self._per_latent(self.config.value, z_BTS).expand_as(z_BTS)
        else:
            # A negative default: inverting a latent works at any residual norm.
            factor = -2.0 if self.config.multiplier is None else self.config.multiplier
            new_BTS = self._per_latent(factor, z_BTS) * z_BTS
        if self.config.positive_only:
            new_BTS = torch.where(z_BTS > 0, new_BTS, z_BTS)
        return latents.write(resid_BTD, new_BTS - z_BTS)

    def _per_latent(self, setting: float | tuple[float, ...], z_BTS: Tensor) -> Tensor:
        # Selection may find fewer latents than were asked for.
        numbers = z_BTS.new_tensor(setting)
        return numbers[: z_BTS.shape[-1]] if numbers.ndim else numbers
