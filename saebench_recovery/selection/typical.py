"""How strongly latents are active where they are: what their displacement is held against."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_recovery.base.precision import exact
from saebench_recovery.sae.latents import Latents
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.targets.target import Target

LEAST = 1e-6  # keeps a ratio finite where all pre-activations are zero


def typical_preactivation(
    target: Target, latents: Latents, prompts: Sequence[tuple[int, ...]]
) -> float:
    """Root mean square pre-activation of latents where they are active on some prompts.

    Where none ever is, of all their pre-activations.
    """
    site = latents.dictionary.site
    active = every = 0.0
    active_count = every_count = 0
    for _, resid_ND in content_residuals(target, site, prompts):
        p_NS, on_NS = latents.preactivation(resid_ND), latents.read(resid_ND) > 0
        square_NS = exact(p_NS).square()
        active, active_count = (
            active + float(square_NS[on_NS.to(square_NS.device)].sum()),
            active_count + int(on_NS.sum()),
        )
        every, every_count = every + float(square_NS.sum()), every_count + square_NS.numel()
    mean = active / active_count if active_count else every / max(1, every_count)
    return float(max(mean**0.5, LEAST))
