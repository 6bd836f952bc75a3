"""The drift that a row is scored by, at any delta and with its gradient.

A search that is held to a run's limits needs what `drift.within_limits` compares with them, of
all scopes, as a function of the delta. A latent that is off has no gradient of its own, and would
never come back: it gets that of its pre-activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.perturbations.drift import Origin, Reading, scopes
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual

LEAST_LIMIT = 1e-9  # keeps a share finite where a run allows no drift at all

Aim = Callable[[Tensor, Tensor], Tensor]
"""What a search raises [N], from the objective [N] and the shares [N, K]; differentiable."""


@dataclass(frozen=True)
class Look:
    """One pass at a delta: the objective [N], each drift's share of its limit [N, K], and the
    aim's gradient [N, P, D] per site. A row is inside the limits where no share exceeds 1."""

    objective_N: Tensor
    share_NK: Tensor
    gradient: Mapping[Site, Tensor]


@dataclass(frozen=True)
class ScoredDrift:
    """What the drift of a problem's rows is measured from.

    The K shares are those of the activations' drift, then of the decoded one's, in every scope;
    zero where a row has none of a scope.
    """

    problem: Problem
    origin: Origin

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """For the defended sites that a residual delta can reach.

        Raises:
            TypeError: the problem is posed in another space.
        """
        space, engine = Residual.of(problem), problem._engine
        first = min(space.constraints)
        reached = {site: held for site, held in engine.active.latents.items() if site >= first}
        with torch.no_grad():
            trace = Trace()
            engine.booked(lambda: engine.objective(problem.zeros(), trace))
        share = engine.batch.rows_per_example
        z, p = ({s: t[s][::share] for s in reached} for t in (trace.z, trace.p))
        scopes_NQ, typical = scopes(engine.batch, problem.positions_NP), engine.drift_rule.typical
        return cls(problem, Origin.of(Reading(z, p), reached, scopes_NQ, typical))

    @property
    def shares(self) -> int:
        """How many there are: K."""
        return 2 * len(self.origin.scopes)

    def look(self, delta: ResidualDelta, aim: Aim) -> Look:
        """One forward and one backward pass."""
        engine = self.problem._engine

        def work() -> Look:
            leaves = {s: v.detach().requires_grad_() for s, v in delta.values.items()}
            trace = Trace()
            with torch.enable_grad():
                objective_N = engine.objective(replace(delta, values=leaves), trace)
                share_NK = self._shares(trace)
                total = aim(objective_N, share_NK).sum()
                grads = torch.autograd.grad(total, list(leaves.values()))
            gradient = dict(zip(leaves, grads, strict=True))
            return Look(objective_N.detach(), share_NK.detach(), gradient)

        return engine.booked(work)

    def note(self, objective_N: Tensor) -> None:
        """Note which rows have their objective with their drift allowed."""
        self.problem._engine.reached(objective_N, self.problem.goal_N)

    def rows(self, index: Tensor) -> Self:
        return replace(self, problem=self.problem.rows(index), origin=self.origin.rows(index))

    def _shares(self, trace: Trace) -> Tensor:
        engine = self.problem._engine
        share, limits = engine.batch.rows_per_example, engine.drift_rule.limits
        z, p = {}, {}
        for site in self.origin.latents:
            z_NQS, p[site] = trace.z[site][::share], trace.p[site][::share]
            ghost_NQS = z_NQS + (p[site] - p[site].detach())
            z[site] = torch.where(z_NQS > 0, z_NQS, ghost_NQS)
        moved = self.origin.drift(Reading(z, p)).values()
        each = [
            (judged_N / max(limit, LEAST_LIMIT)).masked_fill(~scope.present_R, 0.0)
            for limit, decoded in ((limits.drift, False), (limits.decode, True))
            for scope in moved
            for judged_N in [scope.decode_judged_R if decoded else scope.judged_R]
        ]
        return torch.stack(each, 1)
