"""Real residuals for the checks of a defense: of a few evaluation prompts, at its sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.forward import content, forward

Residuals = dict[Site, list[Tensor]]
"""Per site, the residual [T, D] of each prompt's tokens behind BOS, float32."""


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """So many examples, evenly over all of them."""
    step = max(1, len(examples) // count)
    return list(examples[::step][:count])


@torch.no_grad()
def residuals(
    active: DefendedModel, examples: Sequence[Example], sites: Sequence[Site]
) -> tuple[Residuals, Residuals]:
    """What enters and what leaves a defense (the same, without one); later layers are not run."""
    prompts = [example.with_candidates((0,)) for example in examples]  # one row each
    batch, trace = active.target.batch(prompts), Trace()
    edits = active.edits(batch, trace=trace, watch=tuple(sites))
    forward(active.target, batch, edits, pool=max(sites))
    keep_EQ = content(active.target, batch)

    def split(seen: dict[Site, Tensor]) -> Residuals:
        return {
            site: [row[keep] for row, keep in zip(seen[site], keep_EQ, strict=True)]
            for site in sites
        }

    return split(trace.before), split(trace.after)
