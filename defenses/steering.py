"""`steering`: adds a fixed direction that points away from the behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense, Example, Task
from saebench_recovery.model.forward import content, forward
from saebench_recovery.registry import register_defense
from saebench_recovery.selection.latent_scores import CHUNK
from saebench_recovery.targets.target import Target


@register_defense("steering")
class Steering(Defense):
    """h + strength * mean |h| * u, with u a unit direction away from the behaviour.

    `decoder`: u is minus the selected latents' decoder rows, weighted by their scores. `means`:
    u goes from the mean readout residual of the selection examples to that of the retained ones
    (difference in means). The selected latents are the ones whose drift is measured. With
    `where=active`, a token is steered only if one of them is on, and `decoder` away from those.
    """

    class Config(Defense.Config):
        direction: Literal["decoder", "means"] = Field(
            default="decoder",
            description="away from the defended decoder rows or the behaviour's mean",
        )
        where: Literal["everywhere", "active"] = Field(
            default="everywhere", description="every token, or those where a defended latent is on"
        )
        strength: float = Field(
            default=0.5,
            ge=-1e6,
            le=1e6,
            description="length of the added vector over the mean residual norm",
        )

    config: Config
    _away: Mapping[Site, Tensor]  # unit direction [D]
    _length: float

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (site,) = self.latents
        shown, norm = _readout_mean(target, site, task.examples(target, "selection"))
        if self.config.direction == "decoder":
            away_D = -(self.scores[site] @ self.latents[site].decoder_SD)
        else:
            away_D = _readout_mean(target, site, task.examples(target, "retain"))[0] - shown
        if away_D.norm() == 0:
            raise UserError(f"steering by {self.config.direction!r} has no direction at {site}")
        self._away = {site: normalize(away_D, dim=-1)}
        self._length = self.config.strength * norm

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        added = self._length * self._direction(site, resid_BTD)
        return resid_BTD + added.to(resid_BTD.dtype)

    def _direction(self, site: Site, resid_BTD: Tensor) -> Tensor:
        """Unit directions, [D] or one per token [B, T, D]; zero where nothing is steered."""
        if self.config.where == "everywhere":
            return self._away[site]
        latents = self.latents[site]
        on_BTS = (latents.read(resid_BTD) > 0).float()
        if self.config.direction == "means":
            return on_BTS.amax(-1, keepdim=True) * self._away[site]
        return normalize(-(on_BTS * self.scores[site]) @ latents.decoder_SD, dim=-1)


@torch.no_grad()
def _readout_mean(target: Target, site: Site, examples: Sequence[Example]) -> tuple[Tensor, float]:
    """Mean residual [D] at the readout, and the mean residual norm over all content tokens."""
    readouts: list[Tensor] = []
    norms: list[Tensor] = []
    for begin in range(0, len(examples), CHUNK):
        laid = target.batch(examples[begin : begin + CHUNK])
        seen: list[Tensor] = []

        def watch(resid: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(resid.float())
            return resid

        forward(target, laid, {site: watch})
        first_row = torch.arange(len(laid.readout_E), device=target.device) * laid.rows_per_example
        readouts.append(seen[0][first_row, laid.readout_E])
        norms.append(seen[0][content(target, laid)].norm(dim=-1))
    return torch.cat(readouts).mean(0), float(torch.cat(norms).mean())
