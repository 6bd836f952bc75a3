"""The obfuscation term of suffix attacks: how far the defended latents move, as a penalty.

The published soft suffix stores its monitored activations detached, so its term has no gradient;
here it is what the scoring measures, differentiable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.forward import forward

if TYPE_CHECKING:
    from saebench_recovery.perturbations.suffix import SuffixProblem

TINY = 1e-12  # keeps the gradient of a norm finite where nothing moved


@dataclass(frozen=True)
class Shadow:
    """The defended latents of the plain prompts, where windows with a suffix are held to them.

    `z` [N, Q, S] per site, `there_NQ` the columns that count, `scale_N` the norm that drift is
    relative to, `worth_N` what a relative drift of 1 costs, in units of the objective, and
    `enough_N` the objective beyond which only drift counts.
    """

    z: Mapping[Site, Tensor]
    there_NQ: Tensor
    scale_N: Tensor
    worth_N: Tensor
    enough_N: Tensor

    def penalised(self, objective_N: Tensor, trace: Trace) -> Tensor:
        """The objective, less what the drift of its pass costs."""
        share = next(iter(trace.z.values())).shape[0] // len(objective_N)
        square_N = torch.zeros_like(objective_N)
        for site, z_NQS in self.z.items():
            if site in trace.z:  # a task that pools does not run later ones
                gap = (trace.z[site][::share] - z_NQS) * self.there_NQ[:, :, None]
                square_N = square_N + gap.square().sum((1, 2))
        drift_N = (square_N + TINY).sqrt() / self.scale_N
        return torch.minimum(objective_N, self.enough_N) - self.worth_N * drift_N

    def rows(self, index: Tensor) -> Shadow:
        return replace(
            self,
            z={site: z_NQS[index] for site, z_NQS in self.z.items()},
            there_NQ=self.there_NQ[index],
            scale_N=self.scale_N[index],
            worth_N=self.worth_N[index],
            enough_N=self.enough_N[index],
        )

    def after(self, count: int) -> Shadow:
        """For windows without their first columns."""
        z = {site: z_NQS[:, count:] for site, z_NQS in self.z.items()}
        return replace(self, z=z, there_NQ=self.there_NQ[:, count:])


@torch.no_grad()
def shadow(problem: SuffixProblem, weight: float, margin: float) -> Shadow:
    """Read the plain prompts under the defense, and lay them where the suffix moves them.

    Drift counts from the task's first position on, as in the scoring. A relative drift of 1 costs
    `weight` times the clean margin, of which a share of `margin` is enough.
    """
    active, plain = problem.active, problem.plain
    laid, trace = active.target.batch(plain), Trace()
    R, Q = laid.ids_RQ.shape
    problem.meter.run(
        lambda: forward(active.target, laid, active.edits(laid, trace=trace)),
        rows=R,
        tokens=Q,
        layers=active.target.depth(),
    )
    assert active.defense is not None
    latents, share = active.defense.latents, laid.rows_per_example
    here = problem.batch
    before_NQ = here.position_RQ[:: here.rows_per_example] - problem.length
    first = [min((*problem.task.positions(e), len(e.prompt) - 1)) for e in plain]
    first_N = torch.tensor(first, device=before_NQ.device)
    least_N = torch.maximum(torch.minimum(problem.at_N, laid.readout_E), first_N)
    there_NQ = here.mask_RQ[:: here.rows_per_example] & (before_NQ >= least_N[:, None])
    index_NQ1 = before_NQ.clamp(0, Q - 1)[:, :, None]

    def moved(z_RQS: Tensor) -> Tensor:
        z_NQS = z_RQS[::share].gather(1, index_NQ1.expand(-1, -1, z_RQS.shape[2]))
        return z_NQS * there_NQ[:, :, None]

    def norm_N(readings: list[Tensor]) -> Tensor:
        return torch.stack([moved(z).square().sum((1, 2)) for z in readings]).sum(0).sqrt()

    defended_N = norm_N([trace.z[site] for site in latents])
    # Where the defense leaves nothing, drift is relative to what it took away.
    before_N = norm_N([latents[site].read(trace.before[site]) for site in latents])
    scale_N = torch.where(defended_N > 0, defended_N, before_N)
    return Shadow(
        {site: moved(trace.z[site]) for site in latents},
        there_NQ,
        torch.where(scale_N > 0, scale_N, 1.0),
        weight * problem.goal_N.abs(),
        margin * problem.goal_N,
    )
