"""A problem from valid flips: prefixes cached, tails cut to what can change, constraints made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import narrowed, prefill
from saebench_recovery.model.meter import Meter, Trail
from saebench_recovery.model.roles import Intervention, Judge
from saebench_recovery.perturbations.constraints import (
    Constraint,
    Free,
    Tangent,
    constraint_for,
    gradients,
)
from saebench_recovery.perturbations.problem import Problem


def build(
    active: DefendedModel,
    task: Judge,
    examples: Sequence[Sequence[Example]],
    positions_EP: Tensor,
    sites: Sequence[Site],
    budget_EV: Tensor,
    goal_E: Tensor,
    seed: int,
    meter: Meter,
    absolute_V: Sequence[bool] | None = None,
    allowance: float | None = None,
) -> Problem:
    """A problem over E prompts with V variants each, prefilled once per prompt.

    `examples[e]` holds prompt e's V variants (same prompt, own candidates), `budget_EV` their
    budgets relative to the defended residual (or in its own units, where `absolute_V`), and
    `positions_EP` what they may perturb.
    """
    target = active.target
    positions_EP = positions_EP.to(target.device)
    share = len(examples[0])
    kept, place_V = _distinct(examples)
    perturbed = torch.where(positions_EP < 0, 10**9, positions_EP).amin(1).tolist()
    # The readout is in the window even where only the answer after it is perturbed.
    first = [min(p, len(group[0].prompt) - 1) for p, group in zip(perturbed, examples, strict=True)]
    different = [group[v] for group in examples for v in kept]
    once = target.batch(different, [f for f in first for _ in kept])
    prefix = target.batch([group[0] for group in examples], first).prefix
    trace = Trace()
    watched = active.edits(once, trace=trace, watch=tuple(sites))
    start = meter.run(
        lambda: prefill(target, prefix, once, active.edits, watched, min(sites), task.pool),
        rows=once.ids_RQ.shape[0],
        tokens=prefix.ids_EP.shape[1] + once.ids_RQ.shape[1],
        layers=target.depth(),
        logits="none",
    )
    first_row = torch.arange(len(examples), device=target.device) * (
        once.ids_RQ.shape[0] // len(examples)
    )
    column_EP = positions_EP - once.position_RQ[first_row, :1]
    column_EP = torch.where(positions_EP < 0, -1, column_EP)
    if task.pool is None:
        most = int(column_EP.amax())
        once, start = narrowed(target, once, active.edits(once), start, most)
    which_EV = torch.arange(len(examples))[:, None] * len(kept) + torch.tensor(place_V)
    which_N = which_EV.flatten().to(target.device)
    row_RC = which_N[:, None] * once.rows_per_example + torch.arange(
        once.rows_per_example, device=target.device
    )
    window = once.rows(which_N)
    start = replace(start, resid_RQD=start.resid_RQD[row_RC.flatten()])
    constraints: dict[Site, Constraint] = {}
    square_E = torch.zeros(len(examples), device=target.device)
    for site in sites:
        base_EPD = _at(trace.before[site][first_row], column_EP)
        after_EPD = _at(trace.after[site][first_row], column_EP)
        square_E = square_E + after_EPD.flatten(1).square().sum(1)
        constraints[site] = Free()
        if active.defense is not None and site in active.defense.latents:
            edit_EPD = after_EPD - base_EPD
            constraints[site] = _constraint(active, active.defense, site, base_EPD, edit_EPD, share)
    scale_N = square_E.sqrt().repeat_interleave(share)
    absolute_N = torch.tensor(absolute_V or [False] * share, device=scale_N.device)
    unit_N = torch.where(absolute_N.repeat(len(examples)), 1.0, scale_N)
    row_N = torch.arange(len(scale_N), device=scale_N.device)
    return Problem(
        active,
        task,
        window,
        start,
        positions_EP.repeat_interleave(share, 0),
        constraints,
        scale_N,
        unit_N * budget_EV.to(target.device).flatten(),
        goal_E.to(target.device).repeat_interleave(share),
        seed,
        meter,
        row_N,
        Trail(len(row_N), row_N.device),
        allowance=allowance,
    )


def _distinct(examples: Sequence[Sequence[Example]]) -> tuple[list[int], list[int]]:
    """The variants that differ, if they are the same ones for every prompt, and each one's place.

    Variants of one budget after another are alike: they enter the tail with the same residual.
    """
    first = {tuple(group.index(variant) for variant in group) for group in examples}
    (same,) = first if len(first) == 1 else (tuple(range(len(examples[0]))),)
    kept = sorted(set(same))
    return kept, [kept.index(v) for v in same]


def _constraint(
    active: DefendedModel,
    defense: Intervention,
    site: Site,
    base_EPD: Tensor,
    edit_EPD: Tensor,
    share: int,
) -> Constraint:
    """What keeps the latents at a site in place, for `share` rows of each prompt."""
    latents = defense.latents[site]
    if defense.sees_only_latents or active.threat_model == "post":
        repeated = [t.repeat_interleave(share, 0) for t in (base_EPD, edit_EPD)]
        return constraint_for(latents, *repeated)
    columns_EPDS = gradients(
        lambda rows: latents.preactivation(defense.intervene(site, rows)), base_EPD
    )
    note = f"{defense.name}: what latents read after it depends on the whole residual"
    return Tangent(columns_EPDS, share, note)


def _at(resid_EQD: Tensor, column_EP: Tensor) -> Tensor:
    """Residual rows [E, P, D] at window columns, zero where there is none."""
    index = column_EP.clamp(min=0)[:, :, None].expand(-1, -1, resid_EQD.shape[2])
    return resid_EQD.gather(1, index) * (column_EP >= 0)[:, :, None]
