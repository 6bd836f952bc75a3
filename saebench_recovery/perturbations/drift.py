"""How far the defended latents moved from where the defense put them.

Activations and pre-activations are read after the intervention, in float32, at every defended
site. Each scope (perturbed positions, readout, later ones) has its own figures, pooled over
sites and over the scope's positions of one sequence row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Self

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import Batch
from saebench_recovery.sae.latents import Latents
from saebench_recovery.schema import Drift
from saebench_recovery.spec import Limits

METRICS = tuple(Drift.model_fields)
CONSTRAINING = ("perturbed", "readout")  # scopes of which one has to have a drift

# Root mean square activation, relative to what is typical of active latents, up to which latents
# are silent: a defense cannot make drift look huge by leaving them a trace of activation.
SILENT = 1e-3


@dataclass(frozen=True)
class Reading:
    """The defended latents in one pass, per site [R, Q, S]: activation z, pre-activation p."""

    z_RQS: Mapping[Site, Tensor]
    p_RQS: Mapping[Site, Tensor]

    def at(self, column_RK: Tensor) -> Reading:
        """The same at some columns; beyond the last one stands for padding."""

        def picked(values_RQS: Tensor) -> Tensor:
            index = column_RK.clamp(max=values_RQS.shape[1] - 1)[:, :, None]
            return values_RQS.gather(1, index.expand(-1, -1, values_RQS.shape[2]))

        z_RKS, p_RKS = (
            {site: picked(values) for site, values in readings.items()}
            for readings in (self.z_RQS, self.p_RQS)
        )
        return Reading(z_RKS, p_RKS)


@dataclass(frozen=True)
class ScopeDrift:
    """Drift in one scope.

    `metrics` holds every metric of `schema.Drift` as a float32 [R], NaN where it is undefined;
    they are taken when they are first asked for, as a search looks at what is judged alone.
    `present_R`: rows that have a position in the scope. `judged_R`, `decode_judged_R`: what the
    limits are held against. Where the defense leaves the latents silent, no activation can say
    how far they were moved below their threshold: there the displacement of their
    pre-activations decides, relative to what is typical of active ones.
    """

    _take: Callable[[], dict[str, Tensor]]
    present_R: Tensor
    judged_R: Tensor
    decode_judged_R: Tensor

    @cached_property
    def metrics(self) -> dict[str, Tensor]:
        return self._take()


@dataclass(frozen=True)
class DriftRule:
    """How the drift of a run is judged: its limits, and what counts where latents are silent.

    `typical` is, per defended site, the root mean square pre-activation of its defended latents
    where they are active on selection prompts.
    """

    limits: Limits
    typical: Mapping[Site, float]


@dataclass(frozen=True)
class ScopeOrigin:
    """What a scope's drift is measured from: of each row [R], what no perturbation changes.

    Norms of activations and of what they write, the root of their number, and which are silent.
    """

    scope_RQ: Tensor
    norm_R: Tensor
    decode_norm_R: Tensor
    root_count_R: Tensor
    silent_R: Tensor

    @property
    def decode_silent_R(self) -> Tensor:
        return self.silent_R | (self.decode_norm_R == 0)

    @cached_property
    def present_R(self) -> Tensor:
        return self.scope_RQ.any(1)

    @cached_property
    def any_heard(self) -> bool:
        """Whether some row's latents are not silent; a device sync."""
        return not bool(self.silent_R.all())

    @cached_property
    def any_silent(self) -> bool:
        return bool(self.decode_silent_R.any())

    def rows(self, index_R: Tensor) -> ScopeOrigin:
        return ScopeOrigin(*(getattr(self, field.name)[index_R] for field in fields(self)))

    def drift(self, moved: _Moved) -> ScopeDrift:
        """The drift of a pass; what no row is judged by is not computed unless it is asked for."""
        scope_RQ, origin = self.scope_RQ, moved.origin
        present_R, norm_R, decode_norm_R = self.present_R, self.norm_R, self.decode_norm_R

        @cache
        def l2() -> Tensor:
            return scope_norm(moved.gap, scope_RQ)

        @cache
        def decode_l2() -> Tensor:
            return scope_norm(moved.decoded, scope_RQ)

        @cache
        def displacement() -> Tensor:
            return scope_norm(moved.scaled, scope_RQ) / self.root_count_R

        def metrics() -> dict[str, Tensor]:
            z0 = [origin.z_RQS[s] for s in moved.sites]
            z = [moved.recovered.z_RQS[s] for s in moved.sites]
            eligible = _sum([v <= 0 for v in z0], scope_RQ)
            switched_on = _sum([(b <= 0) & (a > 0) for a, b in zip(z, z0, strict=True)], scope_RQ)
            lowered = scope_norm([torch.relu(-v) for v in moved.gap], scope_RQ)
            each = {
                "relative_l2": _ratio(l2(), norm_R),
                "l2": l2(),
                "linf": _largest(moved.gap, scope_RQ),
                "decode_l2": decode_l2(),
                "decode_relative": _ratio(decode_l2(), decode_norm_R),
                "floor_violation": _ratio(lowered, norm_R),
                "reactivated_fraction": _ratio(switched_on, eligible),
                "preactivation_linf": _largest(moved.p_gap, scope_RQ),
                "preactivation_relative": displacement(),
            }
            return {name: v.masked_fill(~present_R, torch.nan) for name, v in each.items()}

        def judged(moved_R: Callable[[], Tensor], scale_R: Tensor, silent_R: Tensor) -> Tensor:
            if not self.any_heard:
                return displacement()
            if not self.any_silent:
                return moved_R() / scale_R
            return _relative(moved_R(), scale_R, silent_R, displacement())

        return ScopeDrift(
            metrics,
            present_R,
            judged(l2, norm_R, self.silent_R),
            judged(decode_l2, decode_norm_R, self.decode_silent_R),
        )


@dataclass(frozen=True)
class _Moved:
    """A pass beside the one that its drift is measured from, a tensor [R, Q, ...] per site."""

    origin: Reading
    recovered: Reading
    latents: Mapping[Site, Latents]
    typical: Mapping[Site, float]

    @cached_property
    def sites(self) -> list[Site]:
        return sorted(self.latents)

    @cached_property
    def gap(self) -> list[Tensor]:
        return [self.recovered.z_RQS[s] - self.origin.z_RQS[s] for s in self.sites]

    @cached_property
    def p_gap(self) -> list[Tensor]:
        return [self.recovered.p_RQS[s] - self.origin.p_RQS[s] for s in self.sites]

    @cached_property
    def scaled(self) -> list[Tensor]:
        return [p / self.typical[s] for s, p in zip(self.sites, self.p_gap, strict=True)]

    @cached_property
    def decoded(self) -> list[Tensor]:
        return [self.latents[s].decoded(v) for s, v in zip(self.sites, self.gap, strict=True)]


@dataclass(frozen=True)
class Origin:
    """The defended pass without a perturbation, from which drift is measured in every scope."""

    reference: Reading
    latents: Mapping[Site, Latents]
    typical: Mapping[Site, float]
    scopes: Mapping[str, ScopeOrigin]

    @classmethod
    def of(
        cls,
        reference: Reading,
        latents: Mapping[Site, Latents],
        scopes: Mapping[str, Tensor],
        typical: Mapping[Site, float],
    ) -> Self:
        """See `drift`."""
        sites = sorted(latents)
        z0 = [reference.z_RQS[s] for s in sites]
        active = [v / typical[s] for s, v in zip(sites, z0, strict=True)]
        decoded0 = [latents[s].decoded(v) for s, v in zip(sites, z0, strict=True)]

        def within(scope_RQ: Tensor) -> ScopeOrigin:
            norm_R, decode_norm_R = (scope_norm(v, scope_RQ) for v in (z0, decoded0))
            root_R = _sum([torch.ones_like(v) for v in z0], scope_RQ).clamp_min(1).sqrt()
            silent_R = scope_norm(active, scope_RQ) / root_R <= SILENT
            return ScopeOrigin(scope_RQ, norm_R, decode_norm_R, root_R, silent_R)

        found = {name: within(scope_RQ) for name, scope_RQ in scopes.items()}
        return cls(reference, latents, typical, found)

    def drift(self, recovered: Reading) -> dict[str, ScopeDrift]:
        """Drift of a recovered pass per scope; see the function `drift`."""
        moved = _Moved(self.reference, recovered, self.latents, self.typical)
        if any(scope.any_heard for scope in self.scopes.values()):
            _ = moved.decoded  # before the norms: so gradients always add up in one order
        return {name: scope.drift(moved) for name, scope in self.scopes.items()}

    def rows(self, index_R: Tensor) -> Self:
        """For some of the rows."""
        z, p = (
            {site: values[index_R] for site, values in part.items()}
            for part in (self.reference.z_RQS, self.reference.p_RQS)
        )
        scopes = {name: scope.rows(index_R) for name, scope in self.scopes.items()}
        return replace(self, reference=Reading(z, p), scopes=scopes)


def drift(
    reference: Reading,
    recovered: Reading,
    latents: Mapping[Site, Latents],
    scopes: Mapping[str, Tensor],
    typical: Mapping[Site, float],
) -> dict[str, ScopeDrift]:
    """Drift of a recovered pass from the defended reference, per scope.

    Args:
        reference: the defended pass without a perturbation (z0, p0).
        recovered: the pass that is judged (z, p), under the active defense.
        latents: the defended latents per site; their decoder rows weigh the decode drift, in the
            SAE's output coordinates.
        scopes: bool [R, Q] per scope: the positions that count.
        typical: see `DriftRule`.
    """
    return Origin.of(reference, latents, scopes, typical).drift(recovered)


def _ratio(part_R: Tensor, whole_R: Tensor) -> Tensor:
    """A ratio, NaN where there is nothing to compare with."""
    # 0 / 0 and x / 0 are undefined, not huge: dividing by an epsilon instead is how a relative
    # drift of 3.3e7 was once published.
    return (part_R / whole_R).masked_fill(whole_R == 0, torch.nan)


def _relative(moved_R: Tensor, scale_R: Tensor, silent_R: Tensor, displacement_R: Tensor) -> Tensor:
    """How far a reading moved relative to its scale, or its displacement [R] where it is silent."""
    # Divided by 1 where it is not asked: a gradient of x / 0 would be NaN there too.
    return torch.where(silent_R, displacement_R, moved_R / scale_R.masked_fill(silent_R, 1))


def scopes(laid: Batch, positions_EP: Tensor) -> dict[str, Tensor]:
    """Where drift is measured, as separate figures, bool [E, Q] per scope."""
    C = laid.rows_per_example
    column_EP = laid.columns(positions_EP)
    perturbed_EQ = laid.at_columns(column_EP)[::C]
    first_E = torch.where(column_EP < 0, 10**9, column_EP).amin(1)[::C]
    column_Q = torch.arange(perturbed_EQ.shape[1], device=perturbed_EQ.device)
    later_EQ = (column_Q > first_E[:, None]) & ~perturbed_EQ & laid.mask_RQ[::C]
    return {
        "perturbed": perturbed_EQ,
        "readout": column_Q == laid.readout_E[:, None],
        "later": later_EQ,
    }


def within_limits(drift: Mapping[str, ScopeDrift], limits: Limits) -> Tensor:
    """Rows [R] whose drift and decode drift are inside the limits in every scope they have.

    A drift that is NaN is never inside.
    """
    return (worst(drift, decoded=False) <= limits.drift) & (
        worst(drift, decoded=True) <= limits.decode
    )


def binds(drift: Mapping[str, ScopeDrift]) -> Tensor:
    """Rows [R] with a displacement where the perturbation acts or is read."""
    each = [drift[name].metrics["preactivation_relative"] for name in CONSTRAINING]
    return ~torch.stack(each).isnan().all(0)


def tightest_limit(drift: Mapping[str, ScopeDrift]) -> Tensor:
    """The smallest limit [R] on both that a row is inside of."""
    return torch.maximum(worst(drift, decoded=False), worst(drift, decoded=True))


def worst(drift: Mapping[str, ScopeDrift], *, decoded: bool) -> Tensor:
    """The largest judged drift [R] of any scope that a row has; infinite where it is NaN."""
    every = [
        (s.decode_judged_R if decoded else s.judged_R)
        .nan_to_num(torch.inf, posinf=torch.inf)
        .masked_fill(~s.present_R, 0)
        for s in drift.values()
    ]
    return torch.stack(every).amax(0)


def scope_norm(values: Iterable[Tensor], scope_RQ: Tensor) -> Tensor:
    """L2 norm [R] over sites, the scope's positions and latents (or residual coordinates).

    Its gradient at zero is zero.
    """
    each = [torch.linalg.vector_norm(_in_scope(v, scope_RQ), dim=(1, 2)) for v in values]
    norm_R: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
    return norm_R


def _sum(values: Iterable[Tensor], scope_RQ: Tensor) -> Tensor:
    return torch.stack([_in_scope(v, scope_RQ).sum((1, 2)) for v in values]).sum(0)


def _largest(values: Iterable[Tensor], scope_RQ: Tensor) -> Tensor:
    return torch.stack([_in_scope(v.abs(), scope_RQ).amax((1, 2)) for v in values]).amax(0)


def _in_scope(values_RQS: Tensor, scope_RQ: Tensor) -> Tensor:
    """Zero outside the scope, whatever padding columns hold."""
    return torch.where(scope_RQ[:, :, None], values_RQS.float(), 0.0)
