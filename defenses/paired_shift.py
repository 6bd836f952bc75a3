"""`paired-shift`: moves a few latents by what separates paired prompts, on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense, Example, Task
from saebench_recovery.model.forward import forward
from saebench_recovery.registry import register_defense
from saebench_recovery.selection.latent_scores import CHUNK
from saebench_recovery.targets.target import Target


@register_defense("paired-shift")
class PairedShift(Defense):
    """z' = z + strength * d at tokens at which a shifted latent is on; the SAE's error is kept.

    d is the mean difference, in latent space, of prompts without and with the behaviour, kept in
    the latents in which it is largest over its standard error: a mean shift by paired prompts
    (Sparse Autoencoders are Capable LLM Jailbreak Mitigators, arXiv 2602.12418). Each selection
    prompt is paired with the retain prompt that is most like it, by the cosine of their latents at
    the readout, so that what both share cancels.
    """

    class Config(Defense.Config):
        strength: float = Field(
            default=4.0, ge=-1e6, le=1e6, description="factor on the mean difference"
        )

    config: Config
    _shift: Mapping[Site, Tensor]  # [S]

    def fit(self, target: Target, task: Task) -> None:
        if self.config.features is not None:
            raise UserError("paired-shift finds its latents itself; leave out -D features")
        site = target.site_for(task.name, self.config.site)
        shown, other = (task.examples(target, split) for split in ("selection", "retain"))
        if len(shown) < 2 or not other:
            raise UserError(f"task {task.name!r} has too few prompts to pair")
        shown_EM, other_EM = (_readout_latents(target, site, split) for split in (shown, other))
        alike_EE = normalize(shown_EM, dim=1) @ normalize(other_EM, dim=1).T
        gap_EM = other_EM[alike_EE.argmax(1)] - shown_EM
        mean_M, error_M = gap_EM.mean(0), gap_EM.std(0) / len(gap_EM) ** 0.5
        score_M = mean_M.abs() / error_M.clamp_min(1e-6)
        top = score_M.topk(min(self.config.latents, len(score_M)))
        chosen = top.indices[top.values > 0]
        if not len(chosen):
            raise UserError(f"no latent at {site} tells task {task.name!r} from what is retained")
        self.latents = {site: target.dictionary(site).defended(chosen)}
        self.scores = {site: score_M[chosen]}
        self._shift = {site: self.config.strength * mean_M[chosen]}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        latents = self.latents[site]
        on_BT1 = (latents.read(resid_BTD) > 0).any(-1, keepdim=True)
        return latents.write(resid_BTD, on_BT1 * self._shift[site])


@torch.no_grad()
def _readout_latents(target: Target, site: Site, examples: Sequence[Example]) -> Tensor:
    """All activations [E, M] at the last token of each prompt."""
    found: list[Tensor] = []
    for begin in range(0, len(examples), CHUNK):
        batch = target.batch([Example("", e.prompt, ((0,),)) for e in examples[begin:][:CHUNK]])
        seen: list[Tensor] = []

        def watch(resid: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(resid)
            return resid

        forward(target, batch, {site: watch}, pool=site)
        found.append(seen[0][torch.arange(len(batch.readout_E)), batch.readout_E])
    dictionary, resid_ED = target.dictionary(site), torch.cat(found)
    return torch.cat([latents.read(resid_ED) for latents in dictionary.pieces()], 1)
