"""`conditional`: the clamp, only at tokens at which the behaviour's latents are loud."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from saebench_recovery.defenses._clamping import ClampingDefense
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Task
from saebench_recovery.registry import register_defense
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.targets.target import Target

MARGIN = 1e-3  # a token that set the threshold and comes again must not open it by rounding


@register_defense("conditional")
class Conditional(ClampingDefense):
    """Sets the defended latents, active or not, at tokens at which the gate is open.

    Conditional clamping (Khoriaty et al., arXiv 2503.11127) with a threshold from what is to be
    retained, as in dynamic guardrails (Muhamed et al., arXiv 2504.08192). The gate reads the
    defended latents themselves: it is open where their activations add up to more than they do on
    all but a share `opens` of the retain tokens. Both papers also gate whole sequences; a defense
    here is a function of each token alone, so that it is the same in every window and in
    generation.
    """

    class Config(ClampingDefense.Config):
        positive_only: bool = Field(default=False, description="leave inactive latents alone")
        opens: float = Field(
            default=0.1, ge=0, lt=1, description="share of retain tokens at which the gate opens"
        )

    config: Config
    _threshold: Mapping[Site, float]

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (site,) = self.latents
        prompts = [example.prompt for example in task.examples(target, "retain")]
        seen = [self._loudness(site, x) for _, x in content_residuals(target, site, prompts)]
        loud_N = torch.cat(seen).sort().values if seen else torch.zeros(1)
        rank = min(len(loud_N), math.ceil(len(loud_N) * (1 - self.config.opens)))
        self._threshold = {site: float(loud_N[rank - 1]) * (1 + MARGIN)}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        open_BT = self._loudness(site, resid_BTD) > self._threshold[site]
        return torch.where(open_BT[..., None], self.clamped(site, resid_BTD), resid_BTD)

    def _loudness(self, site: Site, resid: Tensor) -> Tensor:
        """Sum [...] of the defended latents' activations."""
        return self.latents[site].read(resid).sum(-1)
