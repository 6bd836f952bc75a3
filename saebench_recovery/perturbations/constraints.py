"""Exact constraint sets: perturbations that leave the defended latents' readings as they were.

The delta itself is kept inside the set after every optimizer step. Projecting its gradient
instead is not the same: Adam rescales each coordinate and leaves the subspace (a test shows it).

All bases are computed once, in float64, without a ridge; deltas are projected in float64 too and
returned in float32, which costs what two corrected float32 projections would. A device without
float64 gets the bases in float32, and projects twice.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saebench_recovery.base.precision import fine, in_float64

if TYPE_CHECKING:
    from saebench_recovery.sae.latents import Latents

Kind = Literal["none", "exact", "first-order"]

# Weights and residuals come in float32. A singular value of unit columns, or a share of an edit,
# below one float32 rounding is rounding: ignoring it moves a reading by no more than that share
# of |column| |delta|.
ROUNDING = torch.finfo(torch.float32).eps
NO_DIRECTION = 1e-8  # a tangent this short, relative to the chord, is float64 cancellation
TINY = 1e-37  # keeps 0 / 0 at 0 for rows that cannot move


class Constraint(ABC):
    """A set of allowed deltas; `rank` dimensions of a residual row are forbidden."""

    rank: int
    kind: Kind
    note: str = ""

    @abstractmethod
    def project(self, delta_RPD: Tensor) -> Tensor:
        """An allowed delta close to the given one and no longer; idempotent; dtype kept."""

    def shrink(self, delta_RPD: Tensor, factor_RP: Tensor) -> Tensor:
        """An allowed delta, each row `factor` (0 to 1) times as long as the given allowed one."""
        return delta_RPD * factor_RP[:, :, None]

    def rows(self, index_R: Tensor) -> Constraint:
        """The constraint for some sequence rows of the batch, repeats allowed."""
        return self


class Free(Constraint):
    """No constraint."""

    rank = 0
    kind: Kind = "none"

    def project(self, delta_RPD: Tensor) -> Tensor:
        return delta_RPD


class NullSpace(Constraint):
    """Deltas orthogonal to every column of `columns_DS`, which may be linearly dependent."""

    def __init__(self, columns_DS: Tensor, kind: Kind = "exact", note: str = "") -> None:
        self._basis_DK = orthonormal_basis(columns_DS)
        self.rank = self._basis_DK.shape[1]
        self.kind = kind
        self.note = note

    def project(self, delta_RPD: Tensor) -> Tensor:
        return _remove(fine(delta_RPD), self._basis_DK).to(delta_RPD.dtype)


class Sphere(Constraint):
    """Deltas that a normalising SAE cannot see, before the defense nor after it.

    The readings of x are functions of A^T x and |x| (of the centred x where the SAE centres it;
    the columns of A are then centred). With `base` x, the defense's `edit` e and the delta d,
    they are equal at x + d and x, and at x + e + d and x + e, when d is orthogonal to A (and to
    the ones direction where centred) and to e, and |u + d| = |u| for the part u of x in that
    complement. The edit of a defense that sees only its latents stays what it was, as it depends
    on the same readings and norm. So u + d moves on a sphere; a shorter delta lies on the great
    circle from u to u + d.

    `base_RPD` and `edit_RPD` are raw residual rows at the perturbed positions.
    """

    def __init__(
        self,
        columns_DS: Tensor,
        base_RPD: Tensor,
        edit_RPD: Tensor,
        *,
        centred: bool,
        kind: Kind = "exact",
        note: str = "",
    ) -> None:
        if centred:
            columns_DS = torch.cat([columns_DS, torch.ones_like(columns_DS[:, :1])], 1)
        self._basis_DK = orthonormal_basis(columns_DS)
        outside_RPD = _remove(fine(edit_RPD), self._basis_DK)
        length_RP1 = outside_RPD.norm(dim=-1, keepdim=True)
        noise_RP1 = length_RP1 <= ROUNDING * edit_RPD.norm(dim=-1, keepdim=True)
        unit_RPD = outside_RPD / length_RP1.clamp_min(TINY)
        self._edit_RPD: Tensor = unit_RPD.masked_fill(noise_RP1, 0)
        radius_RPD = self._complement(fine(base_RPD))
        self._radius_RP1: Tensor = radius_RPD.norm(dim=-1, keepdim=True)
        self._unit_RPD: Tensor = radius_RPD / self._radius_RP1.clamp_min(TINY)
        self.rank = self._basis_DK.shape[1] + 1 + int(not bool(noise_RP1.all()))
        self.kind = kind
        self.note = note

    def project(self, delta_RPD: Tensor) -> Tensor:
        delta = self._complement(fine(delta_RPD))
        along = (delta * self._unit_RPD).sum(-1, keepdim=True)
        tangent = delta - along * self._unit_RPD
        angle = torch.atan2(tangent.norm(dim=-1, keepdim=True), self._radius_RP1 + along)
        chord = 2 * self._radius_RP1 * torch.sin(angle / 2)
        # From inside the sphere the nearest point on it can be further from u than asked for.
        chord = torch.minimum(chord, delta.norm(dim=-1, keepdim=True))
        return self._arc(tangent, chord).to(delta_RPD.dtype)

    def shrink(self, delta_RPD: Tensor, factor_RP: Tensor) -> Tensor:
        delta = self._complement(fine(delta_RPD))  # near the antipode the tangent is rounding
        tangent = delta - (delta * self._unit_RPD).sum(-1, keepdim=True) * self._unit_RPD
        chord = delta.norm(dim=-1, keepdim=True) * factor_RP[:, :, None]
        return self._arc(tangent, chord).to(delta_RPD.dtype)

    def rows(self, index_R: Tensor) -> Sphere:
        chosen = copy.copy(self)
        chosen._edit_RPD = self._edit_RPD[index_R]
        chosen._radius_RP1 = self._radius_RP1[index_R]
        chosen._unit_RPD = self._unit_RPD[index_R]
        return chosen

    def _complement(self, rows_RPD: Tensor) -> Tensor:
        rows_RPD = _remove(rows_RPD, self._basis_DK)
        return rows_RPD - (rows_RPD * self._edit_RPD).sum(-1, keepdim=True) * self._edit_RPD

    def _arc(self, tangent_RPD: Tensor, chord_RP1: Tensor) -> Tensor:
        """Delta of the given length from u, on the sphere, towards a tangent direction.

        A row with no tangent direction (u and its target coincide or are antipodes) stays put.
        """
        length: Tensor = tangent_RPD.norm(dim=-1, keepdim=True)
        direction = tangent_RPD / length.clamp_min(TINY)
        chord = torch.where(length > NO_DIRECTION * chord_RP1, chord_RP1, 0.0)
        half = (chord / (2 * self._radius_RP1).clamp_min(TINY)).clamp(max=1)  # sin(angle / 2)
        return chord * ((1 - half.square()).sqrt() * direction - half * self._unit_RPD)


class Tangent(Constraint):
    """Deltas orthogonal, in each row, to the gradients of some readings of that row.

    They move the readings to second order only. `columns_EPDS` belong to E prompts, each of
    which serves `share` neighbouring rows.
    """

    kind: Kind = "first-order"

    def __init__(self, columns_EPDS: Tensor, share: int, note: str) -> None:
        self._basis_EPDK = orthonormal_bases(columns_EPDS)
        prompt_E = torch.arange(len(columns_EPDS), device=columns_EPDS.device)
        self._prompt_R = prompt_E.repeat_interleave(share)
        self.rank = int((self._basis_EPDK != 0).any(-2).sum(-1).max())
        self.note = note

    def project(self, delta_RPD: Tensor) -> Tensor:
        basis_RPDK, delta_RP1D = self._basis_EPDK[self._prompt_R], fine(delta_RPD)[:, :, None]
        return _remove(delta_RP1D, basis_RPDK)[:, :, 0].to(delta_RPD.dtype)

    def rows(self, index_R: Tensor) -> Tangent:
        chosen = copy.copy(self)
        chosen._prompt_R = self._prompt_R[index_R]
        return chosen


def gradients(read: Callable[[Tensor], Tensor], rows_RPD: Tensor) -> Tensor:
    """Gradients [R, P, D, S] of readings [R, P, S], each of which depends on its own row only."""
    with torch.enable_grad():
        leaf = rows_RPD.detach().requires_grad_()
        found = read(leaf)
        each = [
            torch.autograd.grad(found[..., s].sum(), leaf, retain_graph=True)[0]
            for s in range(found.shape[-1])
        ]
    return torch.stack(each, -1)


def constraint_for(latents: Latents, base_RPD: Tensor, edit_RPD: Tensor) -> NullSpace | Sphere:
    """The set of deltas that keep these latents' pre-activations, active and inactive alike.

    Args:
        latents: the defended latents of one site.
        base_RPD: raw residual rows at the perturbed positions, before the defense (with threat
            model `post`: after it, and the edit is zero).
        edit_RPD: what the defense adds to those rows.
    """
    kind, note = latents.exactness, latents.note
    if latents.affine:
        return NullSpace(latents.columns_DS, kind, note)
    return Sphere(
        latents.columns_DS, base_RPD, edit_RPD, centred=latents.centred, kind=kind, note=note
    )


def orthonormal_basis(columns_DS: Tensor) -> Tensor:
    """Orthonormal basis [D, K] in float64 of the columns' span; K is their numerical rank."""

    def basis(columns: Tensor) -> Tensor:
        norm_S = columns.norm(dim=0)
        unit = columns[:, norm_S > 0] / norm_S[norm_S > 0]
        u_DK, sigma_K, _ = torch.linalg.svd(unit, full_matrices=False)
        basis_DK: Tensor = u_DK[:, sigma_K > ROUNDING]
        return basis_DK

    return in_float64(basis, columns_DS.detach())


def orthonormal_bases(columns: Tensor) -> Tensor:
    """The same for each matrix of columns [..., D, S]; where one has a lower rank, zero columns."""

    def basis(exact: Tensor) -> Tensor:
        unit = exact / exact.norm(dim=-2, keepdim=True).clamp_min(TINY)
        u, sigma, _ = torch.linalg.svd(unit, full_matrices=False)
        kept: Tensor = u * (sigma > ROUNDING)[..., None, :]
        return kept

    return in_float64(basis, columns)


def _remove(rows: Tensor, basis: Tensor) -> Tensor:
    once = rows - (rows @ basis) @ basis.mT
    return once if rows.dtype == torch.float64 else once - (once @ basis) @ basis.mT
