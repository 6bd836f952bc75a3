"""`jacobian`: recovery under defenses at several layers, or that see more than their latents.

`orthogonal` keeps a delta out of what the latents at its own site read; behind that site they may
move. Here the readings of every defended site at every scored position are constraints, and the
search is sequential quadratic programming on them (Nocedal and Wright, Numerical Optimization,
chapter 18): each step is uphill inside the null space of their Jacobian, plus the Gauss-Newton
step that takes the realised displacement back.
"""

from __future__ import annotations

import math
from itertools import count
from typing import Literal

import torch
from pydantic import Field
from saebench_recovery.attacks._ascent import LOOK_EVERY, MOSTLY, ResidualAscent, _step
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import PluginConfig, ResidualDelta
from saebench_recovery.perturbations.jacobian import Linearised, Look, Rows
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.registry import register_attack
from saebench_recovery.schema import Constraint

PIECE_BYTES, MOST_BYTES = 2**29, 2**32  # of Jacobians at once, and of one example's


@register_attack("jacobian")
class Jacobian(ResidualAscent):
    """Keeps defended latents in place at every layer, to first order and corrected.

    The other methods show what does the work: `projection` leaves out the correction, `penalty`
    replaces the constraint by a term in the objective, and `sketch` constrains a few random
    combinations of the readings only, for problems whose Jacobian does not fit.
    """

    class Config(ResidualAscent.Config):
        method: Literal["exact", "penalty", "projection", "sketch"] = Field(
            default="exact", description="how readings are held; see above"
        )
        refresh: int = Field(default=10, ge=1, description="steps between Jacobians")
        drift: float = Field(
            default=0.02, gt=0, description="largest drift of a found delta (exact, sketch)"
        )
        directions: int = Field(default=16, ge=1, description="combinations held (sketch)")
        weight: float = Field(
            default=1.0, gt=0, description="of the squared drift, in clean margins (penalty)"
        )

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self.constrained = self.config.method != "penalty"

    @property
    def shortens(self) -> bool:
        return False  # its constraint set is not the space's own

    @property
    def _corrected(self) -> bool:
        return self.config.method in ("exact", "sketch")

    def promise(self, problem: Problem) -> Constraint:
        alone = super().promise(problem)
        model = self._model(problem)
        if not (self.constrained and model.held) or self.config.shared:
            return alone
        sites = ", ".join(map(str, model.held))
        what = "the pre-activations"
        if model.sketched:
            what = f"{len(model.mix_KM)} random combinations of the pre-activations"
        then = f"corrected to drift {self.config.drift:g}" if self._corrected else "not corrected"
        note = f"{what} at {sites} are held to first order, {then}"
        return Constraint(kind="first-order", rank=model.rank, note=note)

    def search(self, problem: Problem) -> ResidualDelta:
        if self.config.shared:
            return super().search(problem)
        model = self._model(problem)
        if model.bytes_per_row > MOST_BYTES:
            raise UserError(
                f"the Jacobian of one example takes {model.bytes_per_row / 2**30:.0f} GiB; "
                "use -A method=sketch, or fewer positions or latents"
            )
        size = max(1, PIECE_BYTES // max(1, model.bytes_per_row))
        pieces = torch.split(torch.arange(problem.size, device=problem.budget_N.device), size)
        found = [self._ascend(model.rows(piece)) for piece in pieces]
        return model.delta(torch.cat(found))

    def _model(self, problem: Problem) -> Linearised:
        config = self.config
        return Linearised(
            self.differentiated(problem),
            directions=config.directions if config.method == "sketch" else None,
            penalty=config.weight if config.method == "penalty" else None,
        )

    def _ascend(self, model: Linearised) -> Tensor:
        """The best delta [N, F] of each example among those whose drift is allowed."""
        config, whole = self.config, model.problem
        limit = config.drift if self._corrected else torch.inf
        goal_N = whole.goal_N * (1 if self.restores else config.margin)
        delta_NF = model.flat(whole.zeros().values)
        best_NF, best_N = delta_NF.clone(), torch.full_like(goal_N, -torch.inf)
        place_N = torch.arange(whole.size, device=goal_N.device)
        momentum = {s: torch.zeros_like(v) for s, v in whole.zeros().values.items()}
        rows: Rows | None = None
        spent: list[float] = []
        steps = config.steps
        for step in count():
            fresh = step % config.refresh == 0 and step < steps
            look = model.look(delta_NF, linearise=fresh)
            rows = look.rows if fresh else rows
            objective_N = look.objective_N.masked_fill(look.drift_N > limit, -torch.inf)
            model.note(objective_N)
            better_N = (objective_N > best_N[place_N]) & (best_N[place_N] < goal_N[place_N])
            best_N[place_N] = torch.where(better_N, objective_N, best_N[place_N])
            best_NF[place_N] = torch.where(better_N[:, None], delta_NF, best_NF[place_N])
            if whole.allowance is not None:  # a device sync
                spent.append(float(whole.spent_N().amax()))
            steps = self._steps(whole.allowance, spent)
            if step >= steps:
                break
            rate = config.lr * (1 + math.cos(math.pi * step / steps)) / 2
            length_N = rate * model.problem.pooled_radius_N
            delta_NF = self._moved(model, look, rows, delta_NF, momentum, length_N)
            if step % LOOK_EVERY == LOOK_EVERY - 1:
                index = model.problem.groups(best_N[place_N] < goal_N[place_N])
                if index.numel() == 0:
                    break
                if index.numel() <= MOSTLY * place_N.numel():
                    place_N, model, delta_NF = place_N[index], model.rows(index), delta_NF[index]
                    momentum = {s: m[index] for s, m in momentum.items()}
                    rows = None if rows is None else rows.rows(index)
        return best_NF

    def _moved(
        self,
        model: Linearised,
        look: Look,
        rows: Rows | None,
        delta_NF: Tensor,
        momentum: dict[Site, Tensor],
        length_N: Tensor,
    ) -> Tensor:
        """The next delta: uphill where nothing held moves, back to where it was held, and shorter.

        Between Jacobians the last one serves, as in a chord method.
        """
        values, gradient = (model.delta(v).values for v in (delta_NF, look.gradient_NF))
        change_NF = model.inside(model.flat(_step(values, gradient, momentum, length_N))) - delta_NF
        if rows is not None:
            change_NF = rows.remove(change_NF)
            if self._corrected:
                change_NF = change_NF + rows.correction(look.moved_NK)
        delta_NF = model.inside(delta_NF + change_NF)
        share_N = model.problem.space.norm(model.delta(delta_NF))
        assert share_N is not None  # residual deltas have one
        # All rows alike: what is held couples them.
        excess_N = share_N / model.problem.budget_N.clamp_min(1e-30)
        return delta_NF / excess_N.clamp_min(1)[:, None]

    def _steps(self, allowance: float | None, spent: list[float]) -> int:
        """How many steps to make: those that the allowance (FLOPs of a row) pays for, if any.

        The first look has a Jacobian and the second need not: every `refresh`-th costs so much.
        """
        if allowance is None or len(spent) < 2:
            return self.config.steps
        plain = spent[1] - spent[0]
        each = plain + (spent[0] - plain) / self.config.refresh
        # Nothing where the read-out is pooled at the perturbed site: that runs no block.
        return max(1, int(allowance / each)) if each else self.config.steps
