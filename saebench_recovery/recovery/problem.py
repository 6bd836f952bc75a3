"""What an attack is handed: a batch of valid flips under an active defense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from saebench_recovery.interfaces import Example, Perturbation, ResidualDelta, Task
from saebench_recovery.recovery.active import ActiveDefense, Trace
from saebench_recovery.recovery.meter import Meter
from saebench_recovery.recovery.projection import Constraint, Free, constraint_for
from saebench_recovery.sites import Site
from saebench_recovery.target.batch import Batch, batch
from saebench_recovery.target.forward import Start, forward, prefill
from saebench_recovery.target.hooks import blocks, start_block

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """N examples to recover, each with its own budget, evaluated through the model's tail.

    The defense is active in every pass. An example may appear several times (with another
    budget, or asking for the wrong target); such neighbours share one cached prefix.

    `goal_N` is the clean model's own margin: going beyond it overwrites instead of restoring.
    `scale_N` is the Frobenius norm of the defended residual at the perturbed positions, and
    `budget_N` the largest norm allowed, in the same absolute units.
    """

    active: ActiveDefense
    task: Task
    examples: tuple[Example, ...]
    batch: Batch
    start: Start
    positions_NP: Tensor
    constraints: Mapping[Site, Constraint]
    scale_N: Tensor
    budget_N: Tensor
    goal_N: Tensor
    seed: int
    meter: Meter

    @property
    def size(self) -> int:
        return len(self.examples)

    def fences(self, constrained: bool) -> Mapping[Site, Constraint]:
        """The constraint sets per site, or none at all."""
        return self.constraints if constrained else dict.fromkeys(self.constraints, Free())

    def zeros(self) -> ResidualDelta:
        """The zero perturbation [N, P, D] at every perturbed site."""
        N, P = self.positions_NP.shape
        width = self.start.resid_RQD.shape[-1]
        empty = torch.zeros(N, P, width, device=self.positions_NP.device)
        return ResidualDelta(dict.fromkeys(self.constraints, empty), self.positions_NP)

    @torch.no_grad()
    def objective(self, delta: ResidualDelta) -> Tensor:
        """The task's margin [N] with this perturbation under the active defense."""
        return self._metered(lambda: self._objective(delta), backward=False)

    def gradient(self, delta: ResidualDelta) -> tuple[Tensor, dict[Site, Tensor]]:
        """The margin [N] and its gradient [N, P, D] per site; examples are independent."""

        def work() -> tuple[Tensor, dict[Site, Tensor]]:
            leaves = {s: v.detach().requires_grad_() for s, v in delta.values.items()}
            with torch.enable_grad():
                objective_N = self._objective(replace(delta, values=leaves))
                grads = torch.autograd.grad(objective_N.sum(), list(leaves.values()))
            return objective_N.detach(), dict(zip(leaves, grads, strict=True))

        return self._metered(work, backward=True)

    def admit(self, perturbation: Perturbation) -> ResidualDelta:
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
        if not all(torch.isfinite(v).all() for v in perturbation.values.values()):
            raise ValueError("the attack returned NaN or infinity")
        norm_N = perturbation.norm_E()
        over = norm_N > self.budget_N * (1 + 1e-5)
        factor_N = torch.where(over, self.budget_N / norm_N.clamp(min=1e-30), 1.0)
        return perturbation.scaled(factor_N)

    def rows(self, index: Tensor) -> Problem:
        """Some of the examples, for stopping those that are done."""
        share = self.size // self.start.prefix_mask_EP.shape[0]
        C = self.batch.rows_per_example
        row = (index[:, None] * C + torch.arange(C, device=index.device)).flatten()
        return replace(
            self,
            examples=tuple(self.examples[i] for i in index.tolist()),
            batch=self.batch.rows(index),
            start=self.start.rows(row, index // share),
            positions_NP=self.positions_NP[index],
            constraints={s: c.rows(index) for s, c in self.constraints.items()},
            scale_N=self.scale_N[index],
            budget_N=self.budget_N[index],
            goal_N=self.goal_N[index],
        )

    def metered(self, meter: Meter) -> Problem:
        """The same problem, its work booked elsewhere."""
        return replace(self, meter=meter)

    def _objective(self, delta: ResidualDelta) -> Tensor:
        edits = self.active.edits(self.batch, delta)
        return self.task.objective(forward(self.active.target, self.batch, edits, self.start))

    def _metered(self, work: Callable[[], T], *, backward: bool) -> T:
        return self.meter.run(
            work,
            rows=self.batch.ids_RQ.shape[0],
            tokens=self.batch.ids_RQ.shape[1],
            layers=len(blocks(self.active.target.model)) - start_block(self.start.site),
            prefix=self.start.prefix.length,
            backward=backward,
        )


def build(
    active: ActiveDefense,
    task: Task,
    examples: Sequence[Sequence[Example]],
    positions_EP: Tensor,
    sites: Sequence[Site],
    relative_EV: Tensor,
    goal_E: Tensor,
    seed: int,
    meter: Meter,
) -> Problem:
    """A problem over E prompts with V variants each, prefilled once per prompt.

    `examples[e]` holds prompt e's V variants (same prompt, own candidates), `relative_EV` their
    budgets relative to the defended residual, and `positions_EP` what they may perturb.
    """
    target = active.target
    positions_EP = positions_EP.to(target.device)
    share = len(examples[0])
    first = torch.where(positions_EP < 0, 10**9, positions_EP).amin(1).tolist()
    variants = tuple(variant for group in examples for variant in group)
    window = batch(variants, [f for f in first for _ in range(share)], target.device)
    prompts = window.rows(torch.arange(0, len(variants), share, device=target.device))
    prompts = replace(prompts, prefix=batch([g[0] for g in examples], first, target.device).prefix)
    trace = Trace()
    start = prefill(target, prompts, active.edits, min(sites), share)
    forward_once = active.edits(prompts, trace=trace, watch=tuple(sites))
    single = replace(start, resid_RQD=start.resid_RQD[::share])
    with torch.no_grad():
        forward(target, prompts, forward_once, single)
    column_EP = prompts.columns(positions_EP)[:: prompts.rows_per_example]
    constraints: dict[Site, Constraint] = {}
    square_E = torch.zeros(len(examples), device=target.device)
    for site in sites:
        base_EPD = _at(trace.before[site], column_EP, prompts.rows_per_example)
        after_EPD = _at(trace.after[site], column_EP, prompts.rows_per_example)
        square_E = square_E + after_EPD.flatten(1).square().sum(1)
        constraints[site] = Free()
        if active.defense is not None and site in active.defense.latents:
            latents = active.defense.latents[site]
            repeated = [t.repeat_interleave(share, 0) for t in (base_EPD, after_EPD - base_EPD)]
            constraints[site] = constraint_for(latents, *repeated)
    scale_N = square_E.sqrt().repeat_interleave(share)
    return Problem(
        active,
        task,
        variants,
        window,
        start,
        positions_EP.repeat_interleave(share, 0),
        constraints,
        scale_N,
        scale_N * relative_EV.to(target.device).flatten(),
        goal_E.to(target.device).repeat_interleave(share),
        seed,
        meter,
    )


def _at(resid_RQD: Tensor, column_EP: Tensor, rows_per_example: int) -> Tensor:
    """Residual rows [E, P, D] at window columns, zero where there is none."""
    resid_EQD = resid_RQD[::rows_per_example]
    index = column_EP.clamp(min=0)[:, :, None].expand(-1, -1, resid_EQD.shape[2])
    return resid_EQD.gather(1, index) * (column_EP >= 0)[:, :, None]
