"""`conditional`: the clamp, only at tokens that read as the behaviour."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field
from saebench_recovery.defenses._clamping import ClampingDefense
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Split, Task
from saebench_recovery.registry import register_defense
from saebench_recovery.selection.discriminant import discriminant
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.targets.target import Target

MARGIN = 1e-3  # a token that set the threshold and comes again must not open it by rounding


@register_defense("conditional")
class Conditional(ClampingDefense):
    """Sets the defended latents, active or not, at tokens at which the gate is open.

    Conditional clamping (Khoriaty et al., arXiv 2503.11127) with a threshold from what is to be
    retained, as in dynamic guardrails (Muhamed et al., arXiv 2504.08192): the gate is open where
    it reads more than on all but a share `opens` of the retain tokens. It reads the defended
    latents themselves, the sum of their activations, or, as a condition vector does in Lee et
    al. (arXiv 2409.05907), the direction of the residual that tells selection prompts from
    retained ones. These papers also gate whole sequences; a defense here is a function of each
    token alone, so that it is the same in every window and in generation.
    """

    class Config(ClampingDefense.Config):
        positive_only: bool = Field(default=False, description="leave inactive latents alone")
        opens: float = Field(
            default=0.1, ge=0, lt=1, description="share of retain tokens at which the gate opens"
        )
        gate: Literal["latents", "direction"] = Field(
            default="latents",
            description="what it reads: the defended latents, or the direction that tells "
            "selection prompts from retained ones",
        )

    config: Config
    _reading: Callable[[Site, Tensor], Tensor]
    _threshold: Mapping[Site, float]

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        self.sees_only_latents = self.config.gate == "latents"
        (site,) = self.latents
        retained_ND = _tokens(target, task, site, "retain")
        self._reading = self._loudness
        if self.config.gate == "direction":
            shown_ND = _tokens(target, task, site, "selection")
            if not len(shown_ND) or not len(retained_ND):
                raise UserError(
                    f"task {task.name!r} has nothing to tell apart; try -D gate=latents"
                )
            read_D = discriminant(shown_ND, retained_ND)
            self._reading = lambda site, resid: resid.float() @ read_D
        read_N = self._reading(site, retained_ND).sort().values
        rank = min(len(read_N), math.ceil(len(read_N) * (1 - self.config.opens)))
        largest = float(read_N[rank - 1]) if rank else 0.0
        self._threshold = {site: largest + MARGIN * abs(largest)}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        open_BT = self._reading(site, resid_BTD) > self._threshold[site]
        return torch.where(open_BT[..., None], self.clamped(site, resid_BTD), resid_BTD)

    def _loudness(self, site: Site, resid: Tensor) -> Tensor:
        """Sum [...] of the defended latents' activations."""
        return self.latents[site].read(resid).sum(-1)


def _tokens(target: Target, task: Task, site: Site, split: Split) -> Tensor:
    """Residuals [N, D] of a split's content tokens."""
    prompts = [example.prompt for example in task.examples(target, split)]
    pieces = [resid_ND for _, resid_ND in content_residuals(target, site, prompts)]
    return torch.cat([torch.empty(0, target.dictionary(site).d_model).to(target.device), *pieces])
