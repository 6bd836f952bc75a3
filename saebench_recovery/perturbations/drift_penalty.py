"""The obfuscation term of suffix attacks: how far the defended latents move, as a penalty.

The published soft suffix stores its monitored activations detached, so its term has no gradient;
here it is what the scoring measures, differentiable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import Trace

TINY = 1e-12  # keeps the gradient of a norm finite where nothing moved


@dataclass(frozen=True)
class DriftPenalty:
    """The defended latents of the plain prompts, where windows with a suffix are held to them.

    `z` [N, Q, S] per site, `counts_NQ` the columns that count, `scale_N` the norm that drift is
    relative to, `price_N` what a relative drift of 1 costs, in units of the objective, and
    `ceiling_N` the objective beyond which only drift counts.
    """

    z: Mapping[Site, Tensor]
    counts_NQ: Tensor
    scale_N: Tensor
    price_N: Tensor
    ceiling_N: Tensor

    def penalised(self, objective_N: Tensor, trace: Trace) -> Tensor:
        """The objective, less what the drift of its pass costs."""
        share = next(iter(trace.z.values())).shape[0] // len(objective_N)
        square_N = torch.zeros_like(objective_N)
        for site, z_NQS in self.z.items():
            if site in trace.z:  # a task that pools does not run later ones
                gap = (trace.z[site][::share] - z_NQS) * self.counts_NQ[:, :, None]
                square_N = square_N + gap.square().sum((1, 2))
        drift_N = (square_N + TINY).sqrt() / self.scale_N
        return torch.minimum(objective_N, self.ceiling_N) - self.price_N * drift_N

    def rows(self, index: Tensor) -> DriftPenalty:
        return replace(
            self,
            z={site: z_NQS[index] for site, z_NQS in self.z.items()},
            counts_NQ=self.counts_NQ[index],
            scale_N=self.scale_N[index],
            price_N=self.price_N[index],
            ceiling_N=self.ceiling_N[index],
        )
