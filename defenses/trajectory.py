"""`trajectory`: the clamp, and behind it a ceiling on what the clamp lowered downstream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from saebench_recovery.defenses._clamping import ClampingDefense
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense, Example, Task
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.forward import content, forward
from saebench_recovery.registry import register_defense
from saebench_recovery.selection.latent_scores import CHUNK
from saebench_recovery.targets.target import Target


@register_defense("trajectory")
class Trajectory(ClampingDefense):
    """Clamps at its site, and holds the rest of the model to what followed from the clamp.

    At every later site with an SAE, the latents that the clamp lowers most on the selection
    prompts may not rise above the level that it left them: their mean activation under the clamp,
    over the tokens at which the clean model has them on. Latents are only ever lowered, and text
    on which they are off is left alone.
    """

    class Config(ClampingDefense.Config):
        followed: int = Field(default=16, ge=1, description="latents held at each later site")

    config: Config
    _ceiling: Mapping[Site, Tensor]  # [S] of the later sites' latents

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (first,) = self.latents
        later = target.sites_after(first, task.pool)
        if not later:
            raise UserError(
                f"trajectory follows the clamp to later sites with an SAE, and {target.name} has "
                f"none after {first} that task {task.name!r} passes; name an earlier -D site"
            )
        moved = _lowered(target, self, task.examples(target, "selection"), later)
        held: dict[Site, Tensor] = {}
        for site, (drop_M, level_M) in moved.items():
            top = drop_M.topk(min(self.config.followed, drop_M.numel()))
            chosen = top.indices[top.values > 0]
            if chosen.numel():
                self.latents = {**self.latents, site: target.dictionary(site).defended(chosen)}
                self.scores = {**self.scores, site: drop_M[chosen]}
                held[site] = level_M[chosen]
        self._ceiling = held

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        if site == min(self.latents):
            return self.clamped(site, resid_BTD)
        latents = self.latents[site]
        z_BTS = latents.read(resid_BTD)
        return latents.write(resid_BTD, -torch.relu(z_BTS - self._ceiling[site]))


@torch.no_grad()
def _lowered(
    target: Target, clamp: Defense, examples: Sequence[Example], sites: Sequence[Site]
) -> dict[Site, tuple[Tensor, Tensor]]:
    """Per site, by how much a clamp lowers each latent [M], and to what level [M] it does.

    The drop is a mean over content tokens, the level one over those where the latent was on.
    """
    sums = {
        site: torch.zeros(3, target.dictionary(site).width, device=target.device) for site in sites
    }
    for begin in range(0, len(examples), CHUNK):
        laid = target.batch(examples[begin : begin + CHUNK])
        keep = content(target, laid)
        before, after = Trace(), Trace()
        for active, trace in (
            (DefendedModel(target, None), before),
            (DefendedModel(target, clamp), after),
        ):
            edits = active.edits(laid, trace=trace, watch=tuple(sites))
            forward(target, laid, edits, pool=sites[-1])
        for site in sites:
            for latents in target.dictionary(site).pieces():
                clean_NS = latents.read(before.after[site][keep])
                clamped_NS = latents.read(after.after[site][keep])
                on_NS = clean_NS > 0
                parts = (clean_NS - clamped_NS, clamped_NS * on_NS, on_NS)
                sums[site][:, latents.chosen] += torch.stack([part.sum(0) for part in parts])
    return {
        site: (drop_M, level_M / on_M.clamp(min=1))
        for site, (drop_M, level_M, on_M) in sums.items()
    }
