"""The space of residual deltas: rows added at some sites and positions, within constraint sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
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


@dataclass(frozen=True)
class Residual(Space):
    """Deltas [N, P, D] at each of `constraints`' sites.

    `constraints` say what keeps the defended latents in place at each site; a space that is not
    `constrained` knows them and does not apply them. `later` are defended sites behind the first.
    """

    kind: ClassVar[str] = "residual"

    positions_NP: Tensor
    width: int
    constraints: Mapping[Site, Constraint]
    constrained: bool
    later: tuple[Site, ...] = ()

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
        windows = lay_out(posing, positions_EP, sites)
        constraints = {
            site: _constraint(
                posing.active, site, windows.before[site], windows.edit[site], windows.variants
            )
            for site in sites
        }
        later = tuple(site for site in defense.latents if site > min(sites))
        space = cls(
            windows.positions_NP, windows.engine.width, constraints, reach.constrained, later
        )
        return windows.problem(space)

    @classmethod
    def of(cls, problem: Problem) -> Residual:
        """The problem's space.

        Raises:
            TypeError: the problem is posed in another one.
        """
        if not isinstance(problem.space, cls):
            raise TypeError(f"a problem of {problem.space.kind}, not of residual deltas")
        return problem.space

    @property
    def allowed(self) -> Mapping[Site, Constraint]:
        """The constraint sets that deltas are kept in."""
        return self.constraints if self.constrained else dict.fromkeys(self.constraints, Free())

    @property
    def promise(self) -> Held:
        """What the constraint sets keep in place, at the perturbed sites only."""
        if not self.constrained:
            return Held(kind="none", rank=0)
        loose = [c for c in self.constraints.values() if c.kind != "exact"]
        note = loose[0].note if loose else ""
        if self.later:
            note = f"held at the perturbed sites only; {', '.join(map(str, self.later))} may move"
        return Held(
            kind="first-order" if self.later or loose else "exact",
            rank=sum(c.rank for c in self.constraints.values()),
            note=note,
        )

    def zeros(self) -> ResidualDelta:
        N, P = self.positions_NP.shape
        empty = torch.zeros(N, P, self.width, device=self.positions_NP.device)
        # A tensor of its own for each site: callers write into them.
        return ResidualDelta({s: empty.clone() for s in self.constraints}, self.positions_NP)

    def nothing(self) -> Perturbation:
        return self.zeros()

    def random(self, draw: Draw, norm_N: Tensor | None) -> ResidualDelta:
        """A Gaussian direction of the given norm per example, inside the constraint set."""
        assert norm_N is not None
        zeros = self.zeros()
        values = {}
        for site, value in zeros.values.items():
            drawn = torch.empty(value.shape)
            for n, generator in enumerate(draw(f"/{site}")):
                drawn[n] = torch.randn(value.shape[1:], generator=generator)
            values[site] = drawn.to(value.device) * (self.positions_NP >= 0)[:, :, None]
        # Far outside the ball, so that projecting always ends on its sphere.
        size_N = replace(zeros, values=values).norm_E()
        far = {s: v * (1e3 * norm_N / size_N)[:, None, None] for s, v in values.items()}
        return self.project(replace(zeros, values=far), norm_N)

    def admit(self, perturbation: Perturbation, budget_N: Tensor) -> ResidualDelta:
        checked_shape(perturbation, type(self.zeros()))
        assert isinstance(perturbation, ResidualDelta)
        if set(perturbation.values) != set(self.constraints):
            raise ValueError("the attack perturbs other sites than the problem's")
        if not torch.equal(perturbation.positions_EP, self.positions_NP):
            raise ValueError("the attack perturbs other positions than the problem's")
        # A narrower delta would be broadcast.
        if any(v.shape[-1] != self.width for v in perturbation.values.values()):
            raise ValueError(f"the attack's delta has not the width {self.width} of the residual")
        if not all_finite(list(perturbation.values.values())):
            raise ValueError("the attack returned NaN or infinity")
        norm_N = perturbation.norm_E()
        over = norm_N > budget_N * (1 + 1e-5)
        factor_N = torch.where(over, budget_N / norm_N.clamp(min=1e-30), 1.0)
        return self.shrink(perturbation, factor_N)

    def project(self, delta: ResidualDelta, budget_N: Tensor) -> ResidualDelta:
        inside = {s: self.allowed[s].project(v) for s, v in delta.values.items()}
        return self._shrunk(delta, inside, excess(inside, budget_N))

    def shrink(self, perturbation: Perturbation, factor_N: Tensor) -> ResidualDelta:
        assert isinstance(perturbation, ResidualDelta)
        return self._shrunk(perturbation, perturbation.values, factor_N)

    def _shrunk(
        self, delta: ResidualDelta, values: Mapping[Site, Tensor], factor_N: Tensor
    ) -> ResidualDelta:
        shorter = {s: self.allowed[s].shrink(v, factor_N) for s, v in values.items()}
        return replace(delta, values=shorter)

    def view(
        self, engine: Engine, perturbation: Perturbation
    ) -> tuple[Engine, ResidualDelta | None]:
        checked_shape(perturbation, ResidualDelta)
        assert isinstance(perturbation, ResidualDelta)
        return engine, perturbation

    def rows(self, index: Tensor) -> Self:
        return replace(
            self,
            positions_NP=self.positions_NP[index],
            constraints={s: c.rows(index) for s, c in self.constraints.items()},
        )


def total_norm(values: Mapping[Site, Tensor]) -> Tensor:
    """Norm [N] of each example over all sites."""
    each: list[Tensor] = [torch.linalg.vector_norm(v, dim=(1, 2)) for v in values.values()]
    return torch.stack(each).square().sum(0).sqrt()


def excess(values: Mapping[Site, Tensor], radius_N: Tensor) -> Tensor:
    """Factor [N], at most 1, that brings each example's norm over all sites into the ball."""
    return (radius_N / total_norm(values).clamp(min=1e-30)).clamp(max=1.0)


def _constraint(
    active: DefendedModel, site: Site, base_EPD: Tensor, edit_EPD: Tensor, share: int
) -> Constraint:
    """What keeps the latents at a site in place, for `share` rows of each prompt."""
    defense = active.defense
    if defense is None or site not in defense.latents:
        return Free()
    latents = defense.latents[site]
    if defense.sees_only_latents or active.threat_model == "post":
        repeated = [t.repeat_interleave(share, 0) for t in (base_EPD, edit_EPD)]
        return constraint_for(latents, *repeated)
    columns_EPDS = gradients(
        lambda rows: latents.preactivation(defense.intervene(site, rows)), base_EPD
    )
    note = f"{defense.name}: what latents read after it depends on the whole residual"
    return Tangent(columns_EPDS, share, note)
