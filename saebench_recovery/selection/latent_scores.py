"""Selection statistics that several tasks share: which latents carry a behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Example, Output
from saebench_recovery.model.forward import content, forward
from saebench_recovery.targets.target import Target

CHUNK = 32  # selection is done once per run; a fixed size keeps its sums reproducible
TOKENS = 2048  # encoded at a time: a dictionary can be 65k wide


def activation_gradient(
    target: Target,
    site: Site,
    examples: Sequence[Example],
    objective: Callable[[Output], Tensor],
) -> Tensor:
    """Mean over examples of sum over tokens of z * d objective / d z, [M].

    First-order effect of removing each latent, BOS excluded (sparse feature circuits,
    arXiv 2403.19647, attribution patching towards zero).
    """
    dictionary = target.dictionary(site)
    total_M = torch.zeros(dictionary.width, device=target.device)
    for begin in range(0, len(examples), CHUNK):
        laid = target.batch(examples[begin : begin + CHUNK])
        seen: list[Tensor] = []

        def watch(resid: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(resid.detach().requires_grad_())
            return seen[0]

        with torch.enable_grad():
            margin_E = objective(forward(target, laid, {site: watch}))
            (grad_RQD,) = torch.autograd.grad(margin_E.sum(), seen)
        keep = content(target, laid)
        resid_ND, grad_ND = seen[0].detach()[keep], grad_RQD[keep].float()
        for latents in dictionary.pieces():
            effect_NS = latents.read(resid_ND) * (grad_ND @ latents.decoder_SD.T)
            total_M[latents.chosen] += effect_NS.sum(0)
    return total_M / len(examples)


@torch.no_grad()
def content_residuals(
    target: Target, site: Site, prompts: Sequence[tuple[int, ...]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Residuals [N, D] of the content tokens at a site, and the prompt [N] of each; in pieces.

    Later layers are not run, and a piece is small enough to encode with a wide dictionary.
    """
    for begin in range(0, len(prompts), CHUNK):
        chunk = prompts[begin : begin + CHUNK]
        laid = target.batch([Example("", ids, ((0,),)) for ids in chunk])
        seen: list[Tensor] = []

        def watch(resid: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(resid)
            return resid

        forward(target, laid, {site: watch}, pool=site)
        keep_RQ = content(target, laid)
        prompt_N = begin + keep_RQ.nonzero()[:, 0]
        yield from zip(
            torch.split(prompt_N, TOKENS), torch.split(seen[0][keep_RQ], TOKENS), strict=True
        )
