"""The clamp that several defenses start from: new activations for the defended latents."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense

Number = Annotated[float, Field(ge=-1e6, le=1e6)]  # beyond, float32 has no room for a residual


class ClampingDefense(Defense):
    """A defense that sets defended latents to a value, or multiplies them."""

    class Config(Defense.Config):
        value: Number | tuple[Number, ...] | None = Field(
            default=None, description="new activation, one for all or one per latent"
        )
        multiplier: Number | tuple[Number, ...] | None = Field(
            default=None,
            description="factor on the activation, one for all or one per latent (SAEBench's "
            "multiplier is none: it is the new activation with its sign changed, a value here)",
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

    def wish(self, z_BTS: Tensor) -> Tensor:
        """What the activations [B, T, S] should become."""
        if self.config.value is not None:
            new_BTS = self._per_latent(self.config.value, z_BTS).expand_as(z_BTS)
        else:
            # A negative default: inverting a latent works at any residual norm.
            factor = -2.0 if self.config.multiplier is None else self.config.multiplier
            new_BTS = self._per_latent(factor, z_BTS) * z_BTS
        return torch.where(z_BTS > 0, new_BTS, z_BTS) if self.config.positive_only else new_BTS

    def clamped(self, site: Site, resid_BTD: Tensor) -> Tensor:
        """h + (z' - z) W_dec over the defended latents, the SAE's error kept.

        The defended state of post-intervention recovery (arXiv 2606.18322).
        """
        latents = self.latents[site]
        z_BTS = latents.read(resid_BTD)
        return latents.write(resid_BTD, self.wish(z_BTS) - z_BTS)

    def _per_latent(self, setting: float | tuple[float, ...], z_BTS: Tensor) -> Tensor:
        # Selection may find fewer latents than were asked for.
        numbers = z_BTS.new_tensor(setting)
        return numbers[: z_BTS.shape[-1]] if numbers.ndim else numbers
