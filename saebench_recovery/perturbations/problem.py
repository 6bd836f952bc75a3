"""What an attack is handed: a batch of valid flips under an active defense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from saebench_recovery import schema
from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.examples import Example, Output
from saebench_recovery.model.forward import Start, forward
from saebench_recovery.model.generation import written
from saebench_recovery.model.hooks import start_block
from saebench_recovery.model.meter import Meter, Trail
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Judge
from saebench_recovery.perturbations.constraints import (
    Constraint,
    Free,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """N examples to recover, each with its own budget, evaluated through the model's tail.

    The defense is active in every pass. An example may appear several times (with another
    budget, or asking for the wrong target); such neighbours share one cached prefix.

    `goal_N` is the clean model's own margin: going beyond it overwrites instead of restoring.
    `scale_N` is the Frobenius norm of the defended residual at the perturbed positions, and
    `budget_N` the largest norm allowed, in the same absolute units. With `wanted_NV` (next-token
    log-probabilities) the objective is minus the KL divergence from them instead of the margin.

    `trail` keeps what the search costs each row; `row_N` are the rows' places in it. An attack
    that is given an `allowance` (FLOPs a row) stops once it is spent.
    """

    active: DefendedModel
    task: Judge
    batch: Batch
    start: Start
    positions_NP: Tensor
    constraints: Mapping[Site, Constraint]
    scale_N: Tensor
    budget_N: Tensor
    goal_N: Tensor
    seed: int
    meter: Meter
    row_N: Tensor
    trail: Trail
    wanted_NV: Tensor | None = None
    allowance: float | None = None

    @property
    def size(self) -> int:
        return len(self.batch.examples)

    @property
    def variants(self) -> int:
        """Neighbouring rows per prompt (budgets, right and wrong targets)."""
        return self.size // self.start.prefix_mask_EP.shape[0]

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.batch.examples

    @property
    def promise(self) -> schema.Constraint:
        """What the constraint sets keep in place, at the perturbed sites only."""
        defense, fences = self.active.defense, self.constraints
        assert defense is not None
        beyond = [str(site) for site in defense.latents if site > min(fences)]
        loose = [fence for fence in fences.values() if fence.kind != "exact"]
        note = loose[0].note if loose else ""
        if beyond:
            note = f"held at the perturbed sites only; {', '.join(beyond)} may move"
        return schema.Constraint(
            kind="first-order" if beyond or loose else "exact",
            rank=sum(fence.rank for fence in fences.values()),
            note=note,
        )

    def fences(self, constrained: bool) -> Mapping[Site, Constraint]:
        """The constraint sets per site, or none at all."""
        return self.constraints if constrained else dict.fromkeys(self.constraints, Free())

    def zeros(self) -> ResidualDelta:
        """The zero perturbation [N, P, D] at every perturbed site."""
        N, P = self.positions_NP.shape
        width = self.start.resid_RQD.shape[-1]
        empty = torch.zeros(N, P, width, device=self.positions_NP.device)
        # A tensor of its own for each site: callers write into them.
        return ResidualDelta({s: empty.clone() for s in self.constraints}, self.positions_NP)

    def nothing(self) -> Perturbation:
        """The perturbation that changes nothing."""
        return self.zeros()

    @torch.no_grad()
    def objective(self, perturbation: Perturbation) -> Tensor:
        """The objective [N] with this perturbation under the active defense."""
        part, delta = self._resolved(perturbation)
        return part.reached(part.tail_pass(lambda: part.differentiable(delta), backward=False))

    @torch.no_grad()
    def behaviour(self, perturbation: Perturbation) -> Tensor:
        """Whether the behaviour is shown, bool [N], by the task's one detector."""
        if not self.task.new_tokens:
            part, delta = self._resolved(perturbation)
            return part.tail_pass(lambda: self.task.behaviour(part._output(delta)), backward=False)
        examples, applied = perturbation.applied(self.examples)
        texts = self._booked(
            lambda: written(self.active, examples, self.task.new_tokens, self.meter, applied)
        )
        scores = torch.empty(self.size, 0, device=self.budget_N.device)
        return self.task.behaviour(Output(self.examples, scores, texts=texts))

    def gradient(self, delta: ResidualDelta) -> tuple[Tensor, dict[Site, Tensor]]:
        """The objective [N] and its gradient [N, P, D] per site; examples are independent."""

        def work() -> tuple[Tensor, dict[Site, Tensor]]:
            leaves = {s: v.detach().requires_grad_() for s, v in delta.values.items()}
            with torch.enable_grad():
                objective_N = self.differentiable(replace(delta, values=leaves))
                grads = torch.autograd.grad(objective_N.sum(), list(leaves.values()))
            return objective_N.detach(), dict(zip(leaves, grads, strict=True))

        objective_N, grads = self.tail_pass(work, backward=True)
        return self.reached(objective_N), grads

    def affordable(self, steps: int) -> int:
        """Steps of a search whose first one is done: those that the allowance pays for, if any."""
        if self.allowance is None:
            return steps
        return max(1, int(self.allowance / float(self.trail.spent_N[self.row_N].amax())))

    def admit(self, perturbation: Perturbation, *, constrained: bool) -> Perturbation:
        """Clip a perturbation to the budget; refuse one that is not of this problem.

        Raises:
            ValueError: other sites, positions or shapes, or values that are not finite.
        """
        if not isinstance(perturbation, ResidualDelta):
            raise TypeError(f"a residual attack returns a ResidualDelta, not {perturbation!r:.80}")
        if set(perturbation.values) != set(self.constraints):
            raise ValueError("the attack perturbs other sites than the problem's")
        if not torch.equal(perturbation.positions_EP, self.positions_NP):
            raise ValueError("the attack perturbs other positions than the problem's")
        width = self.start.resid_RQD.shape[-1]  # a narrower delta would be broadcast
        if any(v.shape[-1] != width for v in perturbation.values.values()):
            raise ValueError(f"the attack's delta has not the width {width} of the residual")
        if not all(torch.isfinite(v).all() for v in perturbation.values.values()):
            raise ValueError("the attack returned NaN or infinity")
        norm_N = perturbation.norm_E()
        over = norm_N > self.budget_N * (1 + 1e-5)
        factor_N = torch.where(over, self.budget_N / norm_N.clamp(min=1e-30), 1.0)
        return self.shrunk(perturbation, factor_N, constrained)

    def shrunk(self, delta: ResidualDelta, factor_N: Tensor, constrained: bool) -> ResidualDelta:
        """Shorter deltas, still in the constraint sets if they were."""
        fences = self.fences(constrained)
        return replace(
            delta, values={s: fences[s].shrink(v, factor_N) for s, v in delta.values.items()}
        )

    def groups(self, wanted_N: Tensor) -> Tensor:
        """Indices of the wanted rows, equally many of each prompt that has any.

        Equal groups go on sharing their prompt's prefix; the smaller ones are filled up with
        rows that were not wanted. Where there is no prefix to share, none are.
        """
        if self.start.prefix.length == 0:
            return wanted_N.nonzero()[:, 0]
        wanted_EV = wanted_N.view(-1, self.variants)
        width = int(wanted_EV.sum(1).amax())
        first_EV = wanted_EV.int().argsort(dim=1, descending=True, stable=True)
        chosen = torch.zeros_like(wanted_EV).scatter(1, first_EV[:, :width], value=True)
        return (chosen & wanted_EV.any(1, keepdim=True)).flatten().nonzero()[:, 0]

    def rows(self, index: Tensor) -> Self:
        """Some of the examples, for stopping those that are done."""
        prompt, count = torch.unique_consecutive(index // self.variants, return_counts=True)
        if (count != count[0]).any():  # unequal groups cannot share a prefix
            prompt = index // self.variants
        C = self.batch.rows_per_example
        row = (index[:, None] * C + torch.arange(C, device=index.device)).flatten()
        return replace(
            self,
            batch=self.batch.rows(index),
            start=self.start.rows(row, prompt),
            positions_NP=self.positions_NP[index],
            constraints={s: c.rows(index) for s, c in self.constraints.items()},
            scale_N=self.scale_N[index],
            budget_N=self.budget_N[index],
            goal_N=self.goal_N[index],
            row_N=self.row_N[index],
            wanted_NV=None if self.wanted_NV is None else self.wanted_NV[index],
        )

    def metered(self, meter: Meter) -> Self:
        """The same problem, its work booked elsewhere and on no trail."""
        trail = Trail(len(self.trail.spent_N), self.trail.spent_N.device)
        return replace(self, meter=meter, trail=trail)

    def restoring(self, wanted_NV: Tensor, goal: float) -> Self:
        """The same problem with the aim of giving these next-token log-probabilities.

        An example is done once the KL divergence from them is at most `goal` nats.
        """
        return replace(self, wanted_NV=wanted_NV, goal_N=torch.full_like(self.goal_N, -goal))

    def _resolved(self, perturbation: Perturbation) -> tuple[Problem, ResidualDelta]:
        """The problem and the delta whose pass shows what a perturbation does."""
        if not isinstance(perturbation, ResidualDelta):
            raise TypeError(f"no residual attack finds a {type(perturbation).__name__}")
        return self, perturbation

    def differentiable(self, delta: ResidualDelta | None, trace: Trace | None = None) -> Tensor:
        """The objective [N] with its graph, and a trace of the defended sites if given.

        For a search's own passes: it books them with `tail_pass` and reports with `reached`.
        """
        if self.wanted_NV is None:
            return self.task.objective(self._output(delta, trace=trace))
        found_NV = self._output(delta, distribution=True, trace=trace).logprobs_EV
        assert found_NV is not None
        return -(self.wanted_NV.exp() * (self.wanted_NV - found_NV)).sum(1)

    def reached(self, objective_N: Tensor) -> Tensor:
        """Note on the trail which rows have their objective now; minus infinity has nothing."""
        least_N = 0 if self.wanted_NV is None else self.goal_N
        self.trail.reach(self.row_N, objective_N > least_N)
        return objective_N

    def tail_pass(self, work: Callable[[], T], *, backward: bool, logits: str = "candidates") -> T:
        """Do `work`, a pass through the tail, and book it; see `Meter.run` for `logits`."""
        return self._booked(
            lambda: self.meter.run(
                work,
                rows=self.batch.ids_RQ.shape[0],
                tokens=self.batch.ids_RQ.shape[1],
                layers=self.active.target.depth(self.task.pool) - start_block(self.start.site),
                prefix=self.start.prefix.length,
                backward=backward,
                logits=logits,
            )
        )

    def _output(
        self,
        delta: ResidualDelta | None,
        *,
        distribution: bool = False,
        trace: Trace | None = None,
    ) -> Output:
        return forward(
            self.active.target,
            self.batch,
            self.active.edits(self.batch, delta, trace),
            self.start,
            pool=self.task.pool,
            distribution=distribution,
        )

    def _booked(self, work: Callable[[], T]) -> T:
        """Do metered work for all rows alike, and put its cost on their trail."""
        before = self.meter.flops
        result = work()
        self.trail.spend(self.row_N, (self.meter.flops - before) / self.size)
        return result
