"""The space of residual deltas: rows added at some sites and positions, within constraint sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Intervention
from saebench_recovery.perturbations.constraints import (
    Constraint,
    Free,
    Tangent,
    constraint_for,
    gradients,
)
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.space import (
    Draw,
    Posing,
    Reach,
    Space,
    all_finite,
    checked_shape,
)
from saebench_recovery.perturbations.windows import lay_out
from saebench_recovery.schema import Constraint as Held

TINY = 1e-30  # keeps 0 / 0 at 0


@dataclass(frozen=True)
class Residual(Space):
    """Deltas [N, P, D] at each of `constraints`' sites.

    `units` [N, P] say what a budget of 1 is at each site and position, `norms` [N, P] the defended
    residual's there. `constraints` say what keeps the defended latents in place at each site; a
    space that is not `constrained` knows them and does not apply them. `later` are defended sites
    behind the first. `unheld` counts the latents that a defense behind the perturbation declares
    and no prompt shows an edit of, which nothing keeps in place.
    """

    kind: ClassVar[str] = "residual"

    positions_NP: Tensor
    width: int
    constraints: Mapping[Site, Constraint]
    constrained: bool
    units: Mapping[Site, Tensor]
    norms: Mapping[Site, Tensor]
    later: tuple[Site, ...] = ()
    unheld: int = 0

    @classmethod
    def sites(cls, reach: Reach, defense: Intervention) -> list[Site]:
        return reach.sites(defense)

    @classmethod
    def pose(cls, reach: Reach, posing: Posing) -> Problem:
        """The problem of an attack that acts on the residual stream."""
        defense = posing.active.defense
        assert defense is not None
        each = [
            torch.tensor(reach.positions(posing.task, group[0]), dtype=torch.long)
            for group in posing.groups
        ]
        positions_EP = pad_sequence(each, batch_first=True, padding_value=-1)
        sites = reach.sites(defense)
        _check_sites(posing, sites)
        windows = lay_out(posing, positions_EP, sites)
        constraints = {
            site: _constraint(
                posing.active, site, windows.before[site], windows.edit[site], windows.variants
            )
            for site in sites
        }
        later = tuple(site for site in posing.active.latents if site > min(sites))
        space = cls(
            windows.positions_NP,
            windows.engine.width,
            constraints,
            reach.constrained,
            windows.units(),
            windows.norms,
            later,
            _unheld(posing.active, sites),
        )
        return windows.problem(space)

    @property
    def allowed(self) -> Mapping[Site, Constraint]:
        """The constraint sets that deltas are kept in."""
        return self.constraints if self.constrained else dict.fromkeys(self.constraints, Free())

    @property
    def promise(self) -> Held:
        """What the constraint sets keep in place, at the perturbed sites only."""
        if not self.constrained:
            return Held(kind="none", rank=0)
        reasons = list(self._reasons())
        return Held(
            kind="first-order" if reasons else "exact",
            rank=sum(c.rank for c in self.constraints.values()),
            note=reasons[0] if reasons else "",
        )

    def _reasons(self) -> Iterator[str]:
        """Why latents that are held may move all the same, the furthest reaching first."""
        if self.later:
            yield f"held at the perturbed sites only; {', '.join(map(str, self.later))} may move"
        yield from (c.note for c in self.constraints.values() if c.kind != "exact")
        if self.unheld:
            yield (
                f"declared latents that no prompt shows an edit of are not held ({self.unheld}): "
                "where one comes on, the defense may move those that are"
            )

    def copied(self) -> Self:
        units, norms = (
            {site: values_NP.clone() for site, values_NP in each.items()}
            for each in (self.units, self.norms)
        )
        return replace(super().copied(), units=units, norms=norms)

    def zeros(self) -> ResidualDelta:
        shape, device = (*self.positions_NP.shape, self.width), self.positions_NP.device
        # A tensor of its own for each site: callers write into them.
        return self.delta({site: torch.zeros(shape, device=device) for site in self.constraints})

    def delta(self, values: Mapping[Site, Tensor]) -> ResidualDelta:
        """The perturbation of these values."""
        return ResidualDelta(values, self.positions_NP)

    def nothing(self) -> Perturbation:
        return self.zeros()

    def radius(self, budget_N: Tensor) -> dict[Site, Tensor]:
        """The largest norm [N, P] of a row at each site and position."""
        return {site: budget_N[:, None] * unit_NP for site, unit_NP in self.units.items()}

    def norm(self, perturbation: Perturbation) -> Tensor:
        return self._largest(perturbation, self.units)

    def relative_norm(self, perturbation: Perturbation) -> Tensor:
        return self._largest(perturbation, self.norms)

    def _largest(self, perturbation: Perturbation, units: Mapping[Site, Tensor]) -> Tensor:
        perturbation = checked_shape(perturbation, ResidualDelta)
        each = [
            (v.norm(dim=2) / units[site].clamp_min(TINY)).masked_fill(self.positions_NP < 0, 0)
            for site, v in perturbation.values.items()
        ]
        return torch.stack([share_NP.amax(1) for share_NP in each]).amax(0)

    def random(self, draw: Draw, budget_N: Tensor, like: Perturbation | None) -> ResidualDelta:
        """Gaussian directions inside the constraint set, row by row of the given one's norm."""
        radius, device = self.radius(budget_N), self.positions_NP.device
        if like is not None:
            assert isinstance(like, ResidualDelta)
            radius = {site: v.norm(dim=2) for site, v in like.values.items()}
        values = {}
        for site in self.constraints:
            drawn_NPD = torch.empty(*self.positions_NP.shape, self.width)
            for row_PD, generator in zip(drawn_NPD.unbind(), draw(f"/{site}"), strict=True):
                torch.randn(row_PD.shape, generator=generator, out=row_PD)
            # Far outside the ball, so that projecting always ends on its sphere.
            unit_NPD = torch.nn.functional.normalize(drawn_NPD.to(device), dim=2)
            values[site] = unit_NPD * (1e3 * radius[site] * (self.positions_NP >= 0))[:, :, None]
        return self._inside(self.delta(values), radius)

    def admit(self, perturbation: Perturbation, budget_N: Tensor) -> ResidualDelta:
        checked_shape(perturbation, type(self.zeros()))
        assert isinstance(perturbation, ResidualDelta)
        # A class of the attack's own could say which examples it is applied to.
        if type(perturbation) is not type(self.zeros()):
            raise TypeError(f"the attack returned a {type(perturbation).__name__} of its own")
        if set(perturbation.values) != set(self.constraints):
            raise ValueError("the attack perturbs other sites than the problem's")
        if not torch.equal(perturbation.positions_EP, self.positions_NP):
            raise ValueError("the attack perturbs other positions than the problem's")
        # A narrower delta would be broadcast.
        if any(v.shape[-1] != self.width for v in perturbation.values.values()):
            raise ValueError(f"the attack's delta has not the width {self.width} of the residual")
        if not all_finite(list(perturbation.values.values())):
            raise ValueError("the attack returned NaN or infinity")
        values = {}
        for site, radius_NP in self.radius(budget_N).items():
            value = perturbation.values[site]
            norm_NP = value.norm(dim=2)
            over_NP = norm_NP > radius_NP * (1 + 1e-5)
            factor_NP = torch.where(over_NP, radius_NP / norm_NP.clamp(min=TINY), 1.0)
            values[site] = self.allowed[site].shrink(value, factor_NP)
        return replace(perturbation, values=values)

    def project(self, delta: ResidualDelta, budget_N: Tensor) -> ResidualDelta:
        return self._inside(delta, self.radius(budget_N))

    def _inside(self, delta: ResidualDelta, radius: Mapping[Site, Tensor]) -> ResidualDelta:
        values = {}
        for site, value in delta.values.items():
            inside = self.allowed[site].project(value)
            factor_NP = (radius[site] / inside.norm(dim=2).clamp(min=TINY)).clamp(max=1.0)
            values[site] = self.allowed[site].shrink(inside, factor_NP)
        return replace(delta, values=values)

    def shrink(self, perturbation: Perturbation, factor_N: Tensor) -> ResidualDelta:
        assert isinstance(perturbation, ResidualDelta)
        factor_NP = factor_N[:, None].expand(self.positions_NP.shape)
        shorter = {s: self.allowed[s].shrink(v, factor_NP) for s, v in perturbation.values.items()}
        return replace(perturbation, values=shorter)

    def view(
        self, engine: Engine, perturbation: Perturbation
    ) -> tuple[Engine, ResidualDelta | None]:
        perturbation = checked_shape(perturbation, ResidualDelta)
        return engine, perturbation

    def rows(self, index: Tensor) -> Self:
        return replace(
            self,
            positions_NP=self.positions_NP[index],
            constraints={s: c.rows(index) for s, c in self.constraints.items()},
            units={s: unit_NP[index] for s, unit_NP in self.units.items()},
            norms={s: norm_NP[index] for s, norm_NP in self.norms.items()},
        )


def total_norm(values: Mapping[Site, Tensor]) -> Tensor:
    """Norm [N] of each example over all sites and positions together."""
    each: list[Tensor] = [torch.linalg.vector_norm(v, dim=(1, 2)) for v in values.values()]
    return torch.stack(each).square().sum(0).sqrt()


def _check_sites(posing: Posing, sites: list[Site]) -> None:
    """Under `reclamp` the defense runs on what is perturbed, so it must not lie before it.

    Raises:
        UserError: a site behind the last defended one.
    """
    assert posing.active.defense is not None
    last = max(posing.active.defense.latents)
    beyond = [str(site) for site in sites if site > last]
    if beyond and posing.active.threat_model == "reclamp":
        raise UserError(
            f"the attack perturbs {', '.join(beyond)}, behind the last defended site {last}: no "
            "defense runs on that; perturb an earlier site, or say --threat-model post"
        )


def _unheld(active: DefendedModel, sites: list[Site]) -> int:
    """How many latents the defense may switch on by itself: none before a delta that follows it."""
    if active.defense is None or active.threat_model == "post":
        return 0
    return sum(
        len(declared.features) - len(active.latents[site].features)
        for site, declared in active.defense.latents.items()
        if site in sites
    )


def _constraint(
    active: DefendedModel, site: Site, base_EPD: Tensor, edit_EPD: Tensor, share: int
) -> Constraint:
    """What keeps the latents at a site in place, for `share` rows of each prompt."""
    defense = active.defense
    if defense is None or site not in active.latents:
        return Free()
    latents = active.latents[site]
    if defense.sees_only_latents or active.threat_model == "post":
        repeated = [t.repeat_interleave(share, 0) for t in (base_EPD, edit_EPD)]
        return constraint_for(latents, *repeated)
    columns_EPDS = gradients(
        lambda rows: latents.preactivation(defense.intervene(site, rows)), base_EPD
    )
    note = f"{defense.name}: what latents read after it depends on the whole residual"
    return Tangent(columns_EPDS, share, note)
