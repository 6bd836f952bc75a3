"""Windows of a problem from valid flips: prefixes cached, tails cut to what can change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import Start, narrowed, prefill
from saebench_recovery.model.trail import Trail
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.space import Posing, Space


@dataclass(frozen=True)
class Windows:
    """E prompts with V variants each, ready to run; N = E * V rows.

    `before` and `edit` hold, per perturbed site, the residual rows [E, P, D] that enter the
    defense at the perturbed positions and what the defense adds to them; `norms` [N, P] those
    of what leaves it.
    """

    posing: Posing
    engine: Engine
    positions_NP: Tensor
    before: Mapping[Site, Tensor]
    edit: Mapping[Site, Tensor]
    norms: Mapping[Site, Tensor]

    @property
    def variants(self) -> int:
        return len(self.posing.groups[0])

    def problem(self, space: Space, examples: Sequence[Example] | None = None) -> Problem:
        """The problem in a space; `examples` where the windows' own hold more than the prompt."""
        posing, device = self.posing, self.positions_NP.device
        plain = self.engine.plain if examples is None else tuple(examples)
        return Problem(
            space,
            posing.budget_EV.to(device).flatten(),
            posing.goal_E.to(device).repeat_interleave(self.variants),
            posing.seed,
            posing.allowance,
            replace(self.engine, plain=plain),
        )

    def units(self) -> dict[Site, Tensor]:
        """What a budget of 1 is at each site and position [N, P]."""
        unit, one_NP = self.posing.unit, torch.ones_like(self.positions_NP, dtype=torch.float32)
        if unit == "relative":
            return dict(self.norms)
        spreads = self.posing.spreads if unit == "spread" else dict.fromkeys(self.norms, 1.0)
        return {site: one_NP * spreads[site] for site in self.norms}


def lay_out(posing: Posing, positions_EP: Tensor, sites: Sequence[Site]) -> Windows:
    """Windows that start at each prompt's first perturbed position, prefilled once per prompt."""
    active, task, groups = posing.active, posing.task, posing.groups
    target, share = active.target, len(groups[0])
    _check_positions(posing, positions_EP)
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
    row_N = torch.arange(len(groups) * share, device=target.device)
    trail = Trail(len(row_N), row_N.device)
    return Windows(
        posing,
        Engine(
            active,
            task,
            window.examples,
            window,
            start,
            posing.meter,
            row_N,
            trail,
            posing.drift_rule,
            may_round=posing.rounded,
        ),
        positions_EP.repeat_interleave(share, 0),
        before,
        {site: after[site] - before[site] for site in sites},
        {site: after[site].norm(dim=2).repeat_interleave(share, 0) for site in sites},
    )


def _check_positions(posing: Posing, positions_EP: Tensor) -> None:
    """Every declared position acts when it is scored, and none is declared twice.

    Raises:
        UserError: one that no pass reaches, or that is named again.
    """
    for group, positions_P in zip(posing.groups, positions_EP.tolist(), strict=True):
        acting = [p for p in positions_P if p >= 0]
        answer = max(posing.task.new_tokens, *(e.longest_answer for e in group))
        last = len(group[0].prompt) + answer - 1
        if not acting or len(set(acting)) != len(acting) or max(acting) >= last:
            raise UserError(
                f"an attack perturbs positions {acting} of example {group[0].id!r}: name at least "
                f"one, each once, and none behind {last - 1}, the last that is read"
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
