"""Selection by a direction between two kinds of prompts, and by what carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Example, Output
from saebench_recovery.model.forward import content, forward, prefill
from saebench_recovery.sae.latents import Dictionary, Latents
from saebench_recovery.selection.latent_scores import CHUNK
from saebench_recovery.targets.target import Target

POINTS = 10  # of the path from the clean to the patched residual, as published


def mean_readout(target: Target, site: Site, prompts: Sequence[tuple[int, ...]]) -> Tensor:
    """Mean residual [D] at the last token of each prompt, float32."""
    return mean_answer(target, site, [(prompt[:-1], prompt[-1:]) for prompt in prompts])


@torch.no_grad()
def mean_answer(
    target: Target, site: Site, answered: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Tensor:
    """Mean residual [D] at all tokens of the answers behind their prompts, float32."""
    found: list[Tensor] = []
    for begin in range(0, len(answered), CHUNK):
        chunk = answered[begin : begin + CHUNK]
        laid = target.batch([Example("", (*prompt, *own), ((0,),)) for prompt, own in chunk])
        seen: list[Tensor] = []

        def watch(resid: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(resid.float())
            return resid

        forward(target, laid, {site: watch}, pool=site)
        starts_E = torch.tensor([len(prompt) for prompt, _ in chunk], device=target.device)
        found.append(seen[0][laid.mask_RQ & (laid.position_RQ >= starts_E[:, None])])
    return torch.cat(found).mean(0)


def aligned(dictionary: Dictionary, direction_D: Tensor, count: int) -> Latents:
    """The latents whose decoder rows have the highest cosine with a direction."""
    every = [
        torch.cosine_similarity(latents.decoder_SD, direction_D[None], dim=1)
        for latents in dictionary.pieces()
    ]
    cosine_M = torch.cat(every)
    return dictionary.defended(cosine_M.topk(min(count, dictionary.width)).indices)


def removed(direction_D: Tensor) -> Callable[[Tensor], Tensor]:
    """Takes a direction out of a residual [..., D]."""
    unit_D = direction_D / direction_D.norm()
    return lambda resid: resid - (resid @ unit_D)[..., None] * unit_D


def added(direction_D: Tensor) -> Callable[[Tensor], Tensor]:
    """Adds a direction, at its own length, to a residual [..., D]."""
    return lambda resid: resid + direction_D


def integrated_gradient(
    target: Target,
    latents: Latents,
    examples: Sequence[Example],
    objective: Callable[[Output], Tensor],
    patch: Callable[[Tensor], Tensor],
) -> Tensor:
    """What each latent [S] adds to an objective [E] as the residual goes from patched to clean.

    Sum over content tokens, mean over examples of (clean - patched activation) times the
    gradient along the latent's decoder row, averaged over the path (arXiv 1703.01365, with as
    many points as the published code). Layers before the latents' site are run once.
    """
    site = latents.dictionary.site
    total_S = torch.zeros(latents.features.numel(), device=target.device)
    for begin in range(0, len(examples), CHUNK):
        laid = target.batch(examples[begin : begin + CHUNK])
        start = prefill(target, laid.prefix, laid, lambda _: {}, {}, site)
        clean_RQD, inside_RQ = start.resid_RQD.float(), content(target, laid)
        patched_RQD = torch.where(inside_RQ[:, :, None], patch(clean_RQD), clean_RQD)
        grad_RQD = torch.zeros_like(clean_RQD)
        for point in range(POINTS):
            share = (point + 0.5) / POINTS
            leaf = torch.lerp(patched_RQD, clean_RQD, share).requires_grad_()
            with torch.enable_grad():
                entering = leaf.to(start.resid_RQD.dtype)
                output = forward(target, laid, {site: lambda _, x=entering: x}, start)  # type: ignore[misc]
                grad_RQD += torch.autograd.grad(objective(output).sum(), leaf)[0] / POINTS
        change_RQS = latents.read(clean_RQD) - latents.read(patched_RQD)
        effect_RQS = change_RQS * (grad_RQD @ latents.decoder_SD.T)
        total_S += effect_RQS[inside_RQ].sum(0)
    return total_S / len(examples)
