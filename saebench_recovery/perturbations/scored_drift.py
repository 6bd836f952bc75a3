"""The drift that a row is scored by, at any delta and with its gradient.

A search that is held to a run's limits needs what `drift.within_limits` compares with them, of
all scopes, as a function of the delta. A latent that was on and is off now has no gradient of its
own, and would never come back: it gets that of its pre-activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.forward import forward
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.perturbations.drift import (
    ABSOLUTE_LIMIT,
    Reading,
    ScopeDrift,
    drift,
    scope_norm,
    scopes,
)
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.sae.latents import Latents
from saebench_recovery.spec import Limits

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

    `limit_NK` are the largest drifts allowed, in the latents' own units: first the activations',
    then the decoded ones', of every scope; infinite where a row has none of a scope.
    """

    problem: Problem
    latents: Mapping[Site, Latents]
    z0_NQS: Mapping[Site, Tensor]
    scopes_NQ: Mapping[str, Tensor]
    limit_NK: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """For the defended sites that a residual delta can reach.

        Raises:
            TypeError: the problem is posed in another space.
        """
        space, engine = Residual.of(problem), problem._engine
        assert engine.active.defense is not None
        first, latents = min(space.constraints), engine.active.defense.latents
        reached = {site: found for site, found in latents.items() if site >= first}
        within_NQ = scopes(engine.batch, problem.positions_NP)
        with torch.no_grad():
            trace = Trace()
            engine.booked(lambda: engine.objective(problem.zeros(), trace))
            reference = _reading(engine, trace, reached)
            clean = _clean(engine, reached)
        still = drift(reference, reference, clean, reached, within_NQ)
        limit_NK = _limits(still, problem.limits)
        return cls(problem, reached, reference.z_RQS, within_NQ, limit_NK)

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
        return replace(
            self,
            problem=self.problem.rows(index),
            z0_NQS={s: z[index] for s, z in self.z0_NQS.items()},
            scopes_NQ={name: scope[index] for name, scope in self.scopes_NQ.items()},
            limit_NK=self.limit_NK[index],
        )

    def _shares(self, trace: Trace) -> Tensor:
        share = self.problem._engine.batch.rows_per_example
        gaps, decoded = [], []
        for site, latents in self.latents.items():
            z_NQS, p_NQS = trace.z[site][::share], trace.p[site][::share]
            ghost_NQS = torch.where(z_NQS > 0, z_NQS, z_NQS + (p_NQS - p_NQS.detach()))
            gaps.append(ghost_NQS - self.z0_NQS[site])
            decoded.append(latents.decoded(gaps[-1]))
        each = [
            scope_norm(values, scope_NQ)
            for values in (gaps, decoded)
            for scope_NQ in self.scopes_NQ.values()
        ]
        return torch.stack(each, 1) / self.limit_NK


def _limits(still: Mapping[str, ScopeDrift], limits: Limits) -> Tensor:
    """The largest drift and decode drift [N, K] of every scope; see `drift.within_limits`."""
    each = [
        torch.where(scale_N > 0, limit * scale_N, ABSOLUTE_LIMIT)
        .clamp_min(torch.finfo(torch.float32).tiny)
        .masked_fill(~scope.present_R, torch.inf)
        for limit, name in ((limits.drift, "scale_R"), (limits.decode, "decode_scale_R"))
        for scope in still.values()
        for scale_N in [getattr(scope, name)]
    ]
    return torch.stack(each, 1)


def _reading(engine: Engine, trace: Trace, latents: Mapping[Site, Latents]) -> Reading:
    """Of each row's first sequence, as drift is scored."""
    share = engine.batch.rows_per_example
    z, p = ({s: t[s][::share] for s in latents} for t in (trace.z, trace.p))
    return Reading(z, p)


def _clean(engine: Engine, latents: Mapping[Site, Latents]) -> Reading:
    """What the latents read without the defense, in the windows' columns."""
    target = engine.active.target
    distinct = list(dict.fromkeys(engine.batch.examples))
    place = torch.tensor([distinct.index(e) for e in engine.batch.examples], device=target.device)
    whole, trace = target.batch(distinct), Trace()
    forward(target, whole, DefendedModel(target, None).edits(whole, None, trace, tuple(latents)))
    share = engine.batch.rows_per_example
    column_NQ = engine.batch.position_RQ[::share].clamp(max=whole.ids_RQ.shape[1] - 1)
    z, p = {}, {}
    for site, found in latents.items():
        resid_EQD = trace.after[site][:: whole.rows_per_example]
        resid_NQD = resid_EQD[place[:, None], column_NQ]
        z[site], p[site] = found.read(resid_NQD), found.preactivation(resid_NQD)
    return Reading(z, p)
