"""`lagrangian`: ascent on the behaviour with a price on the drift that the row is scored by.

`orthogonal` and `jacobian` keep pre-activations in place, also those of silent latents, where a
constrained recovery may move activations up to the run's limits. Here those limits are the
constraints themselves, and each example pays for each drift a price that rises while the drift is
beyond its limit and falls while it is inside: dual ascent on the Lagrangian (Nocedal and Wright,
Numerical Optimization, section 17.3), with multiplicative steps, as prices of several orders of
magnitude are right for some example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from pydantic import Field
from saebench_recovery.attacks._ascent import LOOK_EVERY, MOSTLY, _rate, _step
from saebench_recovery.attacks._residual import (
    THROUGH,
    ResidualAttack,
    Through,
    differentiated,
)
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.perturbations.scored_drift import Look, ScoredDrift
from saebench_recovery.registry import register_attack

INSIDE = 0.99  # of a limit: the replay from the tokens rounds differently
DEAREST = 1e4  # keeps a price finite where the limits cannot be met
KINDS = 3  # of points to start from: zero, one in the null space, one anywhere
SHORTEST = 30  # start that an allowance is divided into, in steps
LENGTHS = (1, 1 / 4, 1 / 8)  # of a round's steps, in those of the first; then these come again
REFINED = (1 / 4, 1 / 20)  # the same of climbs from the best that was found


@register_attack("lagrangian")
class Lagrangian(ResidualAttack):
    """Climbs from zero, from the null space and from random points, up to the limits on drift.

    What is cheap at first lets it climb as if nothing were held, and then come back inside the
    limits. Later starts, those of a round abreast, are for examples that are not done, and the
    best allowed delta of all starts is kept. Of a task that generates an example is done once its
    text shows the behaviour; until then a round replaces what those before it found, whatever its
    margin. Under an allowance, which pays for steps, the margin alone decides. Refinements go on
    from the best delta with prices that are low again, which frees what a start has settled into.
    """

    class Config(ResidualAttack.Config):
        steps: int = Field(default=100, ge=1, le=10_000, description="of each start")
        starts: int = Field(
            default=3,
            ge=1,
            le=100,
            description="from zero, the null space, a random point, and so on",
        )
        refinements: int = Field(
            default=0,
            ge=0,
            le=100,
            description="further climbs, each from the best that was found, in short steps",
        )
        lr: float = Field(default=0.1, gt=0, description="first step, relative to the budget")
        price: float = Field(
            default=0.003, gt=0, description="first price of a drift at its limit, in margins"
        )
        rise: float = Field(
            default=5.0, gt=0, description="exponent by which a price can change in one start"
        )
        margin: float = Field(
            default=1.0, gt=0, description="stop at this share of the clean model's own margin"
        )
        through: Through = Field(default="confirmed", description=THROUGH)

    config: Config

    @property
    def abreast(self) -> int:
        return KINDS

    def search(self, problem: Problem) -> ResidualDelta:
        problem = differentiated(problem, self.config.through)
        found = Found.of(problem, self.config.margin)
        drift = ScoredDrift.of(problem)
        climbs, steps = self._afforded(drift)
        for abreast in _rounds(min(climbs, self.config.starts), climbs):
            if not bool(found.wanted_N.any()):
                break
            rows = problem.groups(found.wanted_N)
            starts = [self._start(problem, number, found).values for number in abreast]
            climb = self._climb_from(drift, rows, abreast, starts)
            tried = found.copies(rows, len(abreast))
            self._climb(climb, tried, steps)
            found.take(tried, rows, tried.done(climb.drift.problem))
        return found.delta

    def _afforded(self, drift: ScoredDrift) -> tuple[int, int]:
        """How many climbs, and steps of each: its own, or what the allowance (FLOPs a row) pays.

        What it pays goes into few climbs rather than into many that get nowhere.
        """
        problem, climbs = drift.problem, self.config.starts + self.config.refinements
        if problem.allowance is None:
            return climbs, self.config.steps
        before = float(problem.spent_N().amax())
        drift.look(problem.zeros(), lambda objective_N, share_NK: objective_N)
        spent = float(problem.spent_N().amax())
        if spent == before:  # a pooled read-out at the perturbed site runs no block
            return climbs, self.config.steps
        steps = max(1, int((problem.allowance - spent) / (spent - before)))
        climbs = max(1, min(climbs, steps // SHORTEST))
        return climbs, steps // climbs

    def _first_step(self, number: int) -> float:
        """The first step of a start, relative to the budget.

        Where long steps overshoot the limits short ones do not, where short ones stall long ones
        go on, and which are right differs from flip to flip: so they differ within a round of
        starts, and from round to round.
        """
        if (again := number - self.config.starts) >= 0:
            return self.config.lr * REFINED[again % len(REFINED)]
        rounds, kind = divmod(number, KINDS)
        return self.config.lr / (1 if kind == 1 else 2) * LENGTHS[rounds % len(LENGTHS)]

    def _climb_from(
        self,
        drift: ScoredDrift,
        rows: Tensor,
        abreast: Sequence[int],
        starts: Sequence[Mapping[Site, Tensor]],
    ) -> Climb:
        """A climb of these rows from several starts, whose copies of a row are neighbours."""
        values = {
            site: torch.stack([start[site][rows] for start in starts], 1).flatten(0, 1)
            for site in starts[0]
        }
        of_copies = drift.rows(rows.repeat_interleave(len(abreast)))
        step_S = torch.tensor(list(map(self._first_step, abreast)), device=rows.device)
        length_N = step_S.repeat(len(rows)) * of_copies.problem.pooled_radius_N
        return Climb.of(of_copies, values, length_N, self.config.price)

    def _start(self, problem: Problem, number: int, found: Found) -> ResidualDelta:
        if number >= self.config.starts:
            return found.delta
        kind = number % KINDS
        if kind == 0:
            return problem.zeros()
        space = replace(Residual.of(problem), constrained=kind == 1)
        drawn = replace(problem, space=space).random(f"start {number}")
        assert isinstance(drawn, ResidualDelta)
        return drawn

    def _climb(self, climb: Climb, tried: Found, steps: int) -> None:
        for step in range(steps + 1):
            look = climb.look(tried)
            tried.keep(climb, look)
            if step == steps:
                return
            climb.step(look, self.config.rise / steps, _rate(1.0, step, steps))
            if step % LOOK_EVERY == LOOK_EVERY - 1:
                index = climb.drift.problem.groups(tried.unmet(climb.rows))
                if index.numel() == 0:
                    return
                if index.numel() <= MOSTLY * climb.rows.numel():
                    climb = climb.of_rows(index)


def _rounds(starts: int, climbs: int) -> Iterator[Sequence[int]]:
    """The climbs that are made abreast: first one start, which may be enough, then by rounds.

    A step of a few rows costs a small model about as much as one of many. Climbs from the best
    that was found come last, one after the other.
    """
    yield [0]
    for first in range(0, starts, KINDS):
        if abreast := range(max(1, first), min(starts, first + KINDS)):
            yield abreast
    for again in range(starts, climbs):
        yield [again]


@dataclass
class Found:
    """The best allowed delta of every row so far, and its objective; minus infinity: none.

    Where a task generates, its text decides (`by_text`): minus infinity also for a delta whose text
    does not show the behaviour, which stays until another is found. `wanted_N` are the rows that
    are not done.
    """

    delta: ResidualDelta
    goal_N: Tensor
    objective_N: Tensor
    wanted_N: Tensor
    by_text: bool
    abreast: int = 1  # neighbouring copies of a row, one for each of its starts

    @classmethod
    def of(cls, problem: Problem, margin: float) -> Self:
        nothing_N = torch.full_like(problem.goal_N, -torch.inf)
        wanted_N = torch.ones_like(nothing_N, dtype=torch.bool)
        goal_N = margin * problem.goal_N
        by_text = problem.generates and problem.allowance is None
        return cls(problem.zeros(), goal_N, nothing_N, wanted_N, by_text)

    def copies(self, rows: Tensor, abreast: int) -> Self:
        """Of some rows so many copies each, for which nothing has been found."""
        index = rows.repeat_interleave(abreast)
        nothing_N = torch.full_like(self.objective_N[index], -torch.inf)
        goal_N, wanted_N = self.goal_N[index], self.wanted_N[index]
        return replace(
            self,
            delta=self.delta.rows(index),
            goal_N=goal_N,
            objective_N=nothing_N,
            wanted_N=wanted_N,
            abreast=abreast,
        )

    def take(self, tried: Self, rows: Tensor, done_N: Tensor) -> None:
        """Of each row's copies the best delta, if it is better than what there is.

        Those that are done come first, and what is done is not wanted any more.
        """
        done_NS = done_N.view(-1, tried.abreast)
        behind_NS = done_NS.any(1, keepdim=True) & ~done_NS
        copy_N = tried.objective_N.view_as(done_NS).masked_fill(behind_NS, -torch.inf).argmax(1)
        best = torch.arange(len(rows), device=rows.device) * tried.abreast + copy_N
        better_N = tried.objective_N[best] > self.objective_N[rows]
        rows, best = rows[better_N], best[better_N]
        for site, values in self.delta.values.items():
            values[rows] = tried.delta.values[site][best]
        # What does not show it counts as not found: any other delta may, whatever its margin.
        unshown_N = ~done_N[best] & self.by_text
        self.objective_N[rows] = tried.objective_N[best].masked_fill(unshown_N, -torch.inf)
        self.wanted_N[rows] &= ~done_N[best]

    def unmet(self, index: Tensor) -> Tensor:
        """Bool: of the indexed rows, those that are wanted and have no goal yet.

        Where the text decides a goal is a copy's own; else one copy has it for all of its row.
        """
        met_N = self.objective_N >= self.goal_N
        if not self.by_text:
            met_N = met_N.view(-1, self.abreast).any(1).repeat_interleave(self.abreast)
        return (self.wanted_N & ~met_N)[index]

    def keep(self, climb: Climb, look: Look) -> None:
        """Keep the deltas that are inside the limits and better than those before them."""
        rows, inside_N = climb.rows, look.share_NK.amax(1) <= INSIDE
        climb.drift.note(look.objective_N.masked_fill(~inside_N, -torch.inf))
        best_N = self.objective_N[rows]
        better_N = inside_N & (look.objective_N > best_N) & self.unmet(rows)
        for site, values in self.delta.values.items():
            values[rows] = torch.where(better_N[:, None, None], climb.values[site], values[rows])
        self.objective_N[rows] = torch.where(better_N, look.objective_N, best_N)

    def done(self, problem: Problem) -> Tensor:
        """Bool [N]: the rows that have their goal, or (`by_text`) whose text shows it."""
        if not self.by_text:
            return self.objective_N >= self.goal_N
        shown_N = self.wanted_N & (self.objective_N > -torch.inf)
        index = shown_N.nonzero()[:, 0]
        if index.numel() > 0:
            shown_N[index] = problem.rows(index).behaviour(self.delta.rows(index))
        return shown_N


@dataclass
class Climb:
    """The copies of rows, one for each start, that a climb still works on.

    `rows` are their places among all copies of this climb, `length_N` their first steps.
    """

    drift: ScoredDrift
    rows: Tensor
    values: dict[Site, Tensor]
    momentum: dict[Site, Tensor]
    length_N: Tensor
    price_NK: Tensor

    @classmethod
    def of(
        cls, drift: ScoredDrift, values: dict[Site, Tensor], length_N: Tensor, price: float
    ) -> Self:
        momentum = {s: torch.zeros_like(v) for s, v in values.items()}
        rows = torch.arange(len(length_N), device=length_N.device)
        price_NK = torch.full((len(rows), drift.shares), price, device=rows.device)
        return cls(drift, rows, values, momentum, length_N, price_NK)

    def look(self, found: Found) -> Look:
        """At the objective up to its goal, less what the drift costs: a price for each limit."""
        goal_N = found.goal_N[self.rows]
        unit_N = goal_N.abs().clamp_min(1e-6)

        def aim(objective_N: Tensor, share_NK: Tensor) -> Tensor:
            cost_N = (self.price_NK * share_NK.square()).sum(1)
            return torch.minimum(objective_N, goal_N) / unit_N - cost_N

        delta = ResidualDelta(self.values, self.drift.problem.positions_NP)
        return self.drift.look(delta, aim)

    def step(self, look: Look, rise: float, rate: float) -> None:
        # A price changes by at most exp(rise): a drift of a hundred limits is not urgent by that.
        factor_NK = torch.exp(rise * (look.share_NK - 1).clamp(max=1))
        self.price_NK = (self.price_NK * factor_NK).clamp(max=DEAREST)
        moved = _step(self.values, look.gradient, self.momentum, rate * self.length_N)
        self.values = self.drift.problem.project(moved)

    def of_rows(self, index: Tensor) -> Self:
        values, momentum = (
            {s: t[index] for s, t in each.items()} for each in (self.values, self.momentum)
        )
        drift, rows = self.drift.rows(index), self.rows[index]
        return replace(
            self,
            drift=drift,
            rows=rows,
            values=values,
            momentum=momentum,
            length_N=self.length_N[index],
            price_NK=self.price_NK[index],
        )
