"""What an attack is handed: a batch of valid flips under an active defense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Generator, Tensor

from saebench_recovery.base.seeds import generators
from saebench_recovery.base.sites import Site
from saebench_recovery.model.backward import Backward
from saebench_recovery.model.examples import Example, Output
from saebench_recovery.model.meter import Meter
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.trail import Trail
from saebench_recovery.perturbations.engine import Engine, Sighting, Witness
from saebench_recovery.perturbations.space import Space


@dataclass(frozen=True)
class Problem:
    """N examples to recover, each with its own budget, in one space of perturbations.

    An example may appear several times: with another budget, or asking for a wrong answer, in an
    order that does not tell which. The defense is active in every pass.

    `goal_N` is the clean model's own margin: going beyond it overwrites instead of restoring.
    `budget_N` is the largest norm allowed at any position, in the run's unit; `radius` gives it
    as it is. An attack that is given an `allowance` (FLOPs a row) stops once it is spent.
    """

    space: Space
    budget_N: Tensor
    goal_N: Tensor
    seed: int
    allowance: float | None
    _engine: Engine

    @property
    def size(self) -> int:
        """Rows: each is an example with a budget and an answer that is asked for."""
        return self._engine.size

    @property
    def variants(self) -> int:
        """Neighbouring rows per prompt."""
        return self._engine.variants

    @property
    def examples(self) -> tuple[Example, ...]:
        """As they are without a perturbation; which answer would be wrong is not said."""
        return tuple(replace(example, wrong=None) for example in self._engine.plain)

    @property
    def positions_NP(self) -> Tensor:
        """Absolute positions of what is perturbed or put in, -1 beyond."""
        return self.space.positions_NP

    @property
    def matches_distribution(self) -> bool:
        """Whether the objective is the clean model's whole output, not the task's margin."""
        return self._engine.wanted_NV is not None

    def zeros(self) -> ResidualDelta:
        """The zero perturbation, [N, P, D] at every perturbed site.

        Raises:
            TypeError: the space has none (tokens).
        """
        zeros = self.space.zeros()
        if zeros is None:
            raise TypeError(f"a {self.space.kind} perturbation has no zero delta")
        return zeros

    def nothing(self) -> Perturbation:
        """The perturbation that changes nothing."""
        return self.space.nothing()

    @property
    def radius(self) -> dict[Site, Tensor]:
        """The largest norm [N, P] of a delta's row at each site and position.

        Raises:
            TypeError: nothing has a norm in this space (tokens).
        """
        return self.space.radius(self.budget_N)

    @property
    def pooled_radius_N(self) -> Tensor:
        """The largest norm [N] over all sites and positions together."""
        acts_NP = self.positions_NP >= 0
        squares = [(radius_NP * acts_NP).square().sum(1) for radius_NP in self.radius.values()]
        return torch.stack(squares).sum(0).sqrt()

    def norm(self, perturbation: Perturbation) -> Tensor | None:
        """The largest norm [N] at any position, in the run's unit; None without a norm."""
        return self.space.norm(perturbation)

    def random(
        self, label: str, like: Perturbation | None = None, of: Tensor | None = None
    ) -> Perturbation:
        """A random perturbation, row by row as large as the given one or the budget.

        Drawn from the run's seed, the example's id, its place in the problem and `label`, so that
        it does not depend on how examples are batched. `of` are indices of the rows that are
        wanted, by default all.
        """
        if of is None:
            return self.space.random(_Draw(self, label), self.budget_N, like)
        return self.space.rows(of).random(_Draw(self, label, of), self.budget_N[of], like)

    def generators(self, label: str, of: Tensor | None = None) -> list[Generator]:
        """Random numbers for each row: of the seed, its example's id and its place among those.

        They depend neither on how examples are batched nor on the order of the rows, nor on which
        of them are wanted: all, or those with the indices `of`.
        """
        order = self._engine.row_N.argsort().tolist()
        ids = [self._engine.plain[n].id for n in order]
        rows = range(self.size) if of is None else of.tolist()
        wanted = set(rows)
        places = [place for place, n in enumerate(order) if n in wanted]
        drawn = generators(self.seed, label, ids, places)
        of_row = {order[place]: one for place, one in zip(places, drawn, strict=True)}
        return [of_row[n] for n in rows]

    @torch.no_grad()
    def objective(self, perturbation: Perturbation) -> Tensor:
        """The objective [N] with this perturbation under the active defense."""
        return self._by_weights(perturbation, Problem._objective)

    def _objective(self, perturbation: Perturbation) -> Tensor:
        def work() -> Tensor:
            engine, delta = self.space.view(self._engine, perturbation)
            objective_N = engine.objective(delta)
            engine.witness.see(partial(Sighting, engine, delta, objective_N))
            return objective_N

        return self._engine.reached(self._engine.booked(work), self.goal_N, perturbation)

    @torch.no_grad()
    def behaviour(self, perturbation: Perturbation) -> Tensor:
        """Whether the behaviour is shown, bool [N], by the task's one detector."""
        return self._by_weights(perturbation, Problem._behaviour)

    def _by_weights(
        self, perturbation: Perturbation, ask: Callable[[Problem, Perturbation], Tensor]
    ) -> Tensor:
        """What is asked of all rows, of those together whose model has the same weights."""
        changes = perturbation.weights_of()
        if changes is None:
            return ask(self, perturbation)
        found: list[Tensor] = []
        parts = [
            torch.tensor([n for n, own in enumerate(changes) if own == change])
            for change in dict.fromkeys(changes)
        ]
        for index in (part.to(self.budget_N.device) for part in parts):
            own = perturbation.rows(index)
            active = self._engine.active.with_weights(own.weights())
            part = self.rows(index).with_engine(lambda e, a=active: replace(e, active=a))  # type: ignore[misc]
            found.append(ask(part, own))
        return torch.cat(found)[torch.cat(parts).argsort().to(self.budget_N.device)]

    def _behaviour(self, perturbation: Perturbation) -> Tensor:
        engine, task = self._engine, self._engine.task
        if not task.new_tokens:

            def work() -> Tensor:
                viewed, delta = self.space.view(engine, perturbation)
                return task.behaviour(viewed.output(delta))

            return engine.booked(work)
        examples, delta = perturbation.applied(engine.plain)
        texts = engine.written(examples, delta)
        scores = torch.empty(self.size, 0, device=self.budget_N.device)
        return task.behaviour(Output(engine.plain, scores, texts=texts))

    def gradient(self, delta: ResidualDelta) -> tuple[Tensor, dict[Site, Tensor]]:
        """The objective [N] and its gradient [N, P, D] per site; examples are independent."""

        def work() -> tuple[Tensor, dict[Site, Tensor]]:
            leaves = {s: v.detach().requires_grad_() for s, v in delta.values.items()}
            with torch.enable_grad():
                with self._engine.precision():
                    objective_N = self._engine.objective(replace(delta, values=leaves)).float()
                grads = torch.autograd.grad(objective_N.sum(), list(leaves.values()))
            return objective_N.detach(), dict(zip(leaves, grads, strict=True))

        objective_N, grads = self._engine.booked(work)
        if self._engine.rounded:  # what it says of the behaviour is not what is scored
            return objective_N, grads
        length_N = self.pooled_radius_N if self.space.has_norm else None
        look = partial(Sighting, self._engine, delta, objective_N, grads, length_N)
        self._engine.witness.see(look)
        return self._engine.reached(objective_N, self.goal_N, delta), grads

    def has_no_gradient(self) -> Tensor:
        """Bool [N]: the objective has no gradient at the zero perturbation."""
        zeros = self.space.zeros()
        if zeros is None:
            return torch.zeros_like(self.goal_N, dtype=torch.bool)
        _, grads = self.gradient(zeros)
        return torch.stack([g.flatten(1).abs().amax(1) for g in grads.values()]).amax(0) == 0

    def project(self, values: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Deltas [N, P, D] per site, into what the space allows and then into the budget ball."""
        delta = ResidualDelta(values, self.positions_NP)
        return dict(self.space.project(delta, self.budget_N).values)

    def admit(self, perturbation: Perturbation) -> Perturbation:
        """Clip a perturbation to the budget; refuse one that is not of this problem.

        Raises:
            TypeError, ValueError: see `Space.admit`.
        """
        return self.space.admit(perturbation, self.budget_N)

    @property
    def flops(self) -> float:
        """FLOPs that the search has cost so far, whatever it was spent on."""
        return self._engine.meter.flops

    def spent_N(self) -> Tensor:
        """FLOPs [N] that the search has cost each row so far."""
        return self._engine.trail.spent_N[self._engine.row_N]

    def affordable(self, steps: int) -> int:
        """Steps of a search whose first one is done: those that the allowance pays for, if any."""
        if self.allowance is None:
            return steps
        # A step may cost nothing: a pooled read-out at the perturbed site runs no block.
        spent = float(self.spent_N().amax())
        return max(1, int(self.allowance / spent)) if spent else steps

    def groups(self, wanted_N: Tensor) -> Tensor:
        """Indices of the wanted rows, and of as many others as makes prompts share a prefix."""
        return self._engine.groups(wanted_N)

    def rows(self, index: Tensor) -> Self:
        """Some of the examples, for stopping those that are done."""
        return replace(
            self,
            space=self.space.rows(index),
            budget_N=self.budget_N[index],
            goal_N=self.goal_N[index],
            _engine=self._engine.rows(index),
        )

    def passing(self, backward: Backward) -> Self:
        """The same problem with gradients that pass the defense otherwise; no value changes.

        For defenses whose own backward pass is wrong or zero.
        """
        active = replace(self._engine.active, backward=backward)
        return self.with_engine(lambda engine: replace(engine, active=active))

    def in_bfloat16(self) -> Self | None:
        """The same with gradients in bfloat16, where the run lets an ascent begin so.

        What it finds has to be finished on this problem. None also where an allowance is counted.
        """
        if self.allowance is not None or not self._engine.may_round:
            return None
        return self.with_engine(lambda engine: replace(engine, rounded=True))

    def copied(self) -> Self:
        """The same problem on copies of all that a result is held to."""
        return replace(
            self,
            space=self.space.copied(),
            budget_N=self.budget_N.clone(),
            goal_N=self.goal_N.clone(),
        )

    # --- for the scoring ----------------------------------------------------------------------

    @property
    def trail(self) -> Trail:
        """What the search has spent on each row, and what it had reached by then."""
        return self._engine.trail

    def begin(self) -> None:
        """From now on these rows are searched, and bear what that costs."""
        self.trail.begin(self._engine.row_N, self._engine.meter.flops)

    @property
    def witness(self) -> Witness:
        """What a search that is watched was shown."""
        return self._engine.witness

    @property
    def generates(self) -> bool:
        """Whether the behaviour is judged by what the model writes."""
        return bool(self._engine.task.new_tokens)

    def counting_on(self, meter: Meter) -> Self:
        """The same problem, its work booked elsewhere and on no trail."""
        return replace(self, _engine=self._engine.counting_on(meter))

    def afresh(self) -> Self:
        """The same problem, as if nothing had been spent on it yet."""
        return self.with_engine(lambda engine: engine.counting_on(engine.meter))

    def shuffled(self) -> tuple[Self, Tensor]:
        """Each prompt's rows in an order of its own, and the index [N] that puts them back."""
        V = self.variants
        drawn = generators(self.seed, "order", [e.id for e in self._engine.plain[::V]])
        order_EV = torch.stack([torch.randperm(V, generator=g) for g in drawn])
        first_E1 = torch.arange(0, self.size, V)[:, None]
        index, back = (
            (first_E1 + order).flatten().to(self.budget_N.device)
            for order in (order_EV, order_EV.argsort(1))
        )
        return self.rows(index), back

    def restoring(self, wanted_NV: Tensor, goal: float) -> Self:
        """The same problem with the aim of giving these next-token log-probabilities.

        An example is done once the KL divergence from them is at most `goal` nats.
        """
        engine = replace(self._engine, wanted_NV=wanted_NV)
        return replace(self, goal_N=torch.full_like(self.goal_N, -goal), _engine=engine)

    def by_margin(self) -> Self:
        """The same problem with the task's own margin as its objective, without a penalty."""
        return self.with_engine(lambda e: replace(e, wanted_NV=None, penalty=None))

    def with_engine(self, change: Callable[[Engine], Engine]) -> Self:
        """The same problem on changed windows (used by the spaces)."""
        return replace(self, _engine=change(self._engine))


@dataclass(frozen=True)
class _Draw:
    """Random numbers of a label; see `space.Draw`."""

    problem: Problem
    label: str
    of: Tensor | None = None

    def __call__(self, part: str) -> list[Generator]:
        return self.problem.generators(self.label + part, self.of)

    def alike(self, part: str) -> Generator:
        return next(generators(self.problem.seed, self.label + part, [""]))
