"""Windows of a problem from valid flips: prefixes cached, tails cut to what can change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import Start, narrowed, prefill
from saebench_recovery.model.meter import Trail
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.space import Posing, Space


@dataclass(frozen=True)
class Windows:
    """E prompts with V variants each, ready to run; N = E * V rows.

    `before` and `edit` hold, per perturbed site, the residual rows [E, P, D] that enter the
    defense at the perturbed positions and what the defense adds to them.
    """

    posing: Posing
    engine: Engine
    positions_NP: Tensor
    before: Mapping[Site, Tensor]
    edit: Mapping[Site, Tensor]
    scale_N: Tensor

    @property
    def variants(self) -> int:
        return len(self.posing.groups[0])

    def problem(self, space: Space, examples: Sequence[Example] | None = None) -> Problem:
        """The problem in a space; `examples` where the windows' own hold more than the prompt."""
        posing, device = self.posing, self.scale_N.device
        absolute_N = torch.tensor(list(posing.absolute_V) * len(posing.groups), device=device)
        unit_N = torch.where(absolute_N, 1.0, self.scale_N)
        return Problem(
            self.engine.batch.examples if examples is None else tuple(examples),
            space,
            self.scale_N,
            unit_N * posing.budget_EV.to(device).flatten(),
            posing.goal_E.to(device).repeat_interleave(self.variants),
            posing.seed,
            posing.allowance,
            posing.limits,
            self.engine,
        )


def lay_out(posing: Posing, positions_EP: Tensor, sites: Sequence[Site]) -> Windows:
    """Windows that start at each prompt's first perturbed position, prefilled once per prompt."""
    active, task, groups = posing.active, posing.task, posing.groups
    target, share = active.target, len(groups[0])
    positions_EP = positions_EP.to(target.device)
    kept, place_V = _distinct(groups)
    perturbed = torch.where(positions_EP < 0, 10**9, positions_EP).amin(1).tolist()
    # The readout is in the window even where only the answer after it is perturbed.
    first = [min(p, len(group[0].prompt) - 1) for p, group in zip(perturbed, groups, strict=True)]
    different = [group[v] for group in groups for v in kept]
    once = target.batch(different, [f for f in first for _ in kept])
    prefix = target.batch([group[0] for group in groups], first).prefix
    trace = Trace()
    watched = active.edits(once, trace=trace, watch=tuple(sites))
    start = prefill(target, prefix, once, active.edits, watched, min(sites), task.pool)
    first_row = torch.arange(len(groups), device=target.device) * (
        len(kept) * once.rows_per_example
    )
    column_EP = positions_EP - once.position_RQ[first_row, :1]
    column_EP = torch.where(positions_EP < 0, -1, column_EP)
    if task.pool is None:
        most = int(column_EP.amax())
        once, start = narrowed(target, once, active.edits(once), start, most)
    window, start = _repeated(once, start, place_V, len(groups))
    before = {s: _at(trace.before[s][first_row], column_EP) for s in sites}
    after = {s: _at(trace.after[s][first_row], column_EP) for s in sites}
    square_E = torch.zeros(len(groups), device=target.device)
    for site in sites:
        square_E = square_E + after[site].flatten(1).square().sum(1)
    row_N = torch.arange(len(groups) * share, device=target.device)
    trail = Trail(len(row_N), row_N.device)
    return Windows(
        posing,
        Engine(active, task, window, start, posing.meter, row_N, trail),
        positions_EP.repeat_interleave(share, 0),
        before,
        {site: after[site] - before[site] for site in sites},
        square_E.sqrt().repeat_interleave(share),
    )


def _distinct(groups: Sequence[Sequence[Example]]) -> tuple[list[int], list[int]]:
    """The variants that differ, if they are the same ones for every prompt, and each one's place.

    Variants of one budget after another are alike: they enter the tail with the same residual.
    """
    first = {tuple(group.index(variant) for variant in group) for group in groups}
    (same,) = first if len(first) == 1 else (tuple(range(len(groups[0]))),)
    kept = sorted(set(same))
    return kept, [kept.index(v) for v in same]


def _repeated(
    once: Batch, start: Start, place_V: Sequence[int], prompts: int
) -> tuple[Batch, Start]:
    """Windows in which every variant has its row, from those of the distinct variants."""
    device = once.ids_RQ.device
    kept = max(place_V) + 1
    which_EV = torch.arange(prompts)[:, None] * kept + torch.tensor(place_V)
    which_N = which_EV.flatten().to(device)
    C = once.rows_per_example
    row_RC = which_N[:, None] * C + torch.arange(C, device=device)
    return once.rows(which_N), replace(start, resid_RQD=start.resid_RQD[row_RC.flatten()])


def _at(resid_EQD: Tensor, column_EP: Tensor) -> Tensor:
    """Residual rows [E, P, D] at window columns, zero where there is none."""
    index = column_EP.clamp(min=0)[:, :, None].expand(-1, -1, resid_EQD.shape[2])
    return resid_EQD.gather(1, index) * (column_EP >= 0)[:, :, None]
