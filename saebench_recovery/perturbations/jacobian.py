"""What the defended latents read at every defended site, and how it depends on the delta.

A delta at one site moves the readings of later sites through the layers between. Their Jacobian
at the current delta comes from vector-Jacobian products through the model's tail; it is exact,
and the constraint that it gives holds to first order around that delta. Pre-activations are
held, not activations, so that a latent below its threshold cannot be brought up to it unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench_recovery.base.precision import exact, fine, finest
from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.meter import count_backward
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.perturbations.constraints import (
    TINY,
    Constraint,
    Free,
    NullSpace,
    Tangent,
)
from saebench_recovery.perturbations.drift import Origin, Reading, scopes, tightest_limit
from saebench_recovery.perturbations.engine import Sighting
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual

PRODUCTS = 16  # vector-Jacobian products of all rows that are computed at once
# Smallest singular value, relative to the largest, that float32 Jacobian rows of unit length can
# tell from rounding; a correction along a smaller one would be noise, magnified.
SMALLEST = 1e-5


@dataclass(frozen=True)
class Look:
    """One pass at a delta: per row the objective, its gradient, the drift, what is held.

    `objective_N` and `gradient_NF` (over all sites, positions and coordinates) include the
    penalty, if any. `drift_N` is the smallest limit that the row is inside of, as it is scored.
    `moved_NK` is how far the held readings are from where they belong.
    """

    objective_N: Tensor
    gradient_NF: Tensor
    drift_N: Tensor
    moved_NK: Tensor
    rows: Rows | None


class Rows:
    """A Jacobian [N, K, F] per example and its row space, made in float64."""

    def __init__(self, jacobian_NKF: Tensor) -> None:
        self.jacobian_NKF = exact(jacobian_NKF)
        self._scale_NK = 1 / self.jacobian_NKF.norm(dim=2).clamp_min(TINY)
        self._unit_NKF = self.jacobian_NKF * self._scale_NK[:, :, None]
        # The smaller Gram matrix: a few latents at many coordinates, or the other way round.
        _, K, F = jacobian_NKF.shape
        wide = K <= F
        gram = self._unit_NKF @ self._unit_NKF.mT if wide else self._unit_NKF.mT @ self._unit_NKF
        square, vectors = torch.linalg.eigh(gram)
        kept = square > SMALLEST**2 * square[:, -1:].clamp_min(TINY)
        self._inverse_NI = torch.where(kept, 1 / square.clamp_min(TINY), 0)
        basis = vectors
        if wide:
            basis = self._unit_NKF.mT @ vectors * self._inverse_NI.sqrt()[:, None, :]
        self._basis_NFI = basis * kept[:, None, :]
        for name, tensor in vars(self).items():  # to where they are applied, step by step
            setattr(self, name, tensor.to(finest(jacobian_NKF.device)).to(jacobian_NKF.device))

    def remove(self, step_NF: Tensor) -> Tensor:
        """The part of a step that moves no held reading."""
        return step_NF - _apply(self._basis_NFI, _apply(self._basis_NFI.mT, step_NF))

    def correction(self, moved_NK: Tensor) -> Tensor:
        """The shortest step [N, F] that takes these displacements back (Gauss-Newton)."""
        seen_NI = _apply(self._basis_NFI.mT, _apply(self._unit_NKF.mT, moved_NK * self._scale_NK))
        return -_apply(self._basis_NFI, self._inverse_NI * seen_NI)

    def rows(self, index_N: Tensor) -> Rows:
        chosen = object.__new__(Rows)
        for name, tensor in vars(self).items():
            setattr(chosen, name, tensor[index_N])
        return chosen


class Linearised:
    """The defended latents of a problem, as functions of a flat delta [N, F] in float64.

    `exact`: what is kept exactly, at the first perturbed site, whose own readings then need no
    Jacobian. Everything else that is defended and scored is held through `Look.rows`: all of it,
    or `directions` random combinations. With a `penalty`, nothing is; the objective then loses
    `penalty * goal * (relative displacement of all readings)^2`.
    """

    def __init__(self, problem: Problem, directions: int | None, penalty: float | None) -> None:
        space, engine = Residual.of(problem), problem._engine
        self.problem = problem
        self._sites = sorted(space.constraints)
        self._shape = problem.zeros().values[self._sites[0]].shape[1:]
        first = self._sites[0]
        # No delta reaches what was read before its own site.
        self._latents = {s: held for s, held in engine.active.latents.items() if s >= first}
        own_set = space.constraints[first]
        loose = penalty is not None or isinstance(own_set, Tangent)
        self.exact: Constraint = Free() if loose else own_set
        later = [s for s in sorted(self._latents) if s > first]
        own = [first] if first in self._latents and loose else []
        self.held = [*own, *later]
        self.scopes_NQ = scopes(engine.batch, problem.positions_NP)
        self._scored_NQ = torch.stack(list(self.scopes_NQ.values())).any(0)
        self._penalty = penalty
        self.mix_KM = self._combinations(directions)
        self._origin: Origin | None = None

    def look(self, delta_NF: Tensor, *, linearise: bool) -> Look:
        """One forward and one backward pass, and the Jacobian at this delta if asked for.

        The first look is the reference that the others drift from: it is at the zero delta.
        """
        problem, engine = self.problem, self.problem._engine

        def work() -> Look:
            leaf = delta_NF.float().requires_grad_()
            trace = Trace()
            with torch.enable_grad():
                objective_N = engine.objective(self.delta(leaf), trace)
                reading = self._reading(trace, engine.batch.rows_per_example)
                if self._origin is None:
                    self._origin = Origin.of(
                        _detached(reading),
                        self._latents,
                        self.scopes_NQ,
                        engine.drift_rule.typical,
                    )
                moved_NM = self._moved(reading)
                if self._penalty is not None:
                    square_N = (moved_NM / self._size(self._origin.reference)).square().sum(1)
                    objective_N = objective_N - self._penalty * problem.goal_N * square_N
                (gradient_NF,) = torch.autograd.grad(objective_N.sum(), leaf)
                if self._penalty is None:
                    self._seen(leaf, objective_N, gradient_NF)
                rows = self._rows(delta_NF) if linearise else None
            found = self._origin.drift(_detached(reading))
            return Look(
                objective_N.detach(),
                fine(gradient_NF),
                tightest_limit(found),
                fine(moved_NM.detach()) @ fine(self.mix_KM.mT),
                rows,
            )

        return engine.booked(work)

    def _seen(self, flat_NF: Tensor, objective_N: Tensor, gradient_NF: Tensor) -> None:
        """Let scoring repeat a look, with the gradient of the objective."""
        engine, length_N = self.problem._engine, self.problem.pooled_radius_N
        delta, grads = self.delta(flat_NF), self.delta(gradient_NF).values
        engine.witness.see(lambda: Sighting(engine, delta, objective_N, grads, length_N))

    def note(self, objective_N: Tensor) -> None:
        """Note which rows have their objective with their drift allowed."""
        self.problem._engine.reached(objective_N, self.problem.goal_N)

    def delta(self, flat_NF: Tensor) -> ResidualDelta:
        """The perturbation that a flat delta stands for, float32."""
        parts = flat_NF.float().view(len(flat_NF), len(self._sites), *self._shape).unbind(1)
        values = dict(zip(self._sites, parts, strict=True))
        return ResidualDelta(values, self.problem.positions_NP)

    def flat(self, values: Mapping[Site, Tensor]) -> Tensor:
        """The inverse of `delta`, in float64."""
        return fine(torch.stack([values[s] for s in self._sites], 1).flatten(1))

    @property
    def rank(self) -> int:
        """Dimensions forbidden to a token: at the first site, and by what is held behind it."""
        return self.exact.rank + sum(len(self._latents[s].features) for s in self.held)

    @property
    def sketched(self) -> bool:
        """Whether only some random combinations of the readings are held."""
        return 0 < len(self.mix_KM) < self.mix_KM.shape[1]

    @property
    def bytes_per_row(self) -> int:
        """Of a Jacobian and what is made of it, for one example."""
        K, F = len(self.mix_KM), len(self._sites) * self._shape.numel()
        return 8 * (4 * K * F + min(K, F) * (F + 2 * min(K, F)))

    def inside(self, flat_NF: Tensor) -> Tensor:
        """The same deltas inside what is kept exactly at the first perturbed site."""
        split = flat_NF.view(len(flat_NF), len(self._sites), *self._shape)
        return torch.cat([self.exact.project(split[:, 0])[:, None], split[:, 1:]], 1).flatten(1)

    def rows(self, index_N: Tensor) -> Linearised:
        """The same for some of the examples."""
        chosen = object.__new__(Linearised)
        vars(chosen).update(vars(self))
        chosen.problem = self.problem.rows(index_N)
        chosen.exact = self.exact.rows(index_N)
        chosen.scopes_NQ = {name: scope[index_N] for name, scope in self.scopes_NQ.items()}
        chosen._scored_NQ = self._scored_NQ[index_N]
        if self._origin is not None:
            chosen._origin = self._origin.rows(index_N)
        return chosen

    def _reading(self, trace: Trace, C: int) -> Reading:
        """Of each example's first row, as drift is scored, where a pass has C rows of each."""
        z, p = ({s: t[s][::C] for s in self._latents} for t in (trace.z, trace.p))
        return Reading(z, p)

    def _moved(self, reading: Reading) -> Tensor:
        """Displacement [N, M] of the held pre-activations from the reference, where scored."""
        assert self._origin is not None
        before = self._origin.reference.p_RQS
        each = [
            ((reading.p_RQS[s] - before[s]) * self._scored_NQ[:, :, None]).flatten(1)
            for s in self.held
        ]
        nothing = self._scored_NQ.new_zeros(len(self._scored_NQ), 0, dtype=torch.float32)
        return torch.cat([nothing, *each], 1)

    def _size(self, reading: Reading) -> Tensor:
        """Norm [N, 1] of the held activations where scored; of the pre-activations if all off."""
        sizes = []
        for values in (reading.z_RQS, reading.p_RQS):
            every = [(values[s] * self._scored_NQ[:, :, None]).flatten(1) for s in self.held]
            sizes.append(torch.cat(every, 1).norm(dim=1, keepdim=True))
        return torch.where(sizes[0] > 0, sizes[0], sizes[1]).clamp_min(1e-12)

    def _combinations(self, directions: int | None) -> Tensor:
        """Combinations [K, M] of the held readings: each by itself, or a random few."""
        Q = self._scored_NQ.shape[1]
        count = sum(Q * len(self._latents[s].features) for s in self.held)
        device = self.problem.budget_N.device
        if self._penalty is not None:
            return torch.zeros(0, count, device=device)
        if directions is None or directions >= count:
            return torch.eye(count, device=device)
        drawn = torch.Generator().manual_seed(self.problem.seed)
        mix_KM: Tensor = torch.randn(directions, count, generator=drawn) / directions**0.5
        return mix_KM.to(device)

    def _rows(self, delta_NF: Tensor) -> Rows | None:
        """The Jacobian, from a pass of its own that makes nothing but the readings."""
        if not len(self.mix_KM):
            return None
        engine, N = self.problem._engine, len(delta_NF)
        leaf_NF = delta_NF.float().requires_grad_()
        moved_NM = self._moved(self._reading(engine.read(self.delta(leaf_NF), self.held[-1]), 1))
        parts, before = [], engine.meter.flops
        for mix_kM in torch.split(self.mix_KM, PRODUCTS):
            wanted_kNM = mix_kM[:, None].expand(-1, N, -1)
            (part_kNF,) = torch.autograd.grad(
                moved_NM, leaf_NF, wanted_kNM, retain_graph=True, is_grads_batched=True
            )
            parts.append(part_kNF)
        # Products that are made together have been counted as one.
        each = (engine.meter.flops - before) / (N * len(parts))
        count_backward(N * (len(self.mix_KM) - len(parts)), each)
        jacobian_KNF = torch.cat(parts)
        inside = torch.stack([self._tangent(part) for part in jacobian_KNF], 1)
        return Rows(inside)

    def _tangent(self, row_NF: Tensor) -> Tensor:
        # A linear constraint has left only its own directions to move in.
        return self.inside(row_NF) if isinstance(self.exact, NullSpace) else row_NF


def _detached(reading: Reading) -> Reading:
    z, p = ({s: t.detach() for s, t in part.items()} for part in (reading.z_RQS, reading.p_RQS))
    return Reading(z, p)


def _apply(matrix_NKF: Tensor, vector_NF: Tensor) -> Tensor:
    return (matrix_NKF @ vector_NF[:, :, None])[:, :, 0]
