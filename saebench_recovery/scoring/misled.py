"""Whether a search was shown what scoring finds: the same values, and a gradient that is theirs.

A defense may be a function with an honest gradient wherever it is checked beforehand, and another
one in a search: for batches of a search's size, by the stack of calls, after some number of them,
in a copy. So a few looks of the search itself are repeated, by the defense that judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.roles import Intervention
from saebench_recovery.perturbations.engine import Engine, Sighting
from saebench_recovery.perturbations.residual import total_norm

STEP = 0.02  # of each row's budget
SMOOTH, DISAGREES = 0.1, 0.3  # relative to the slope
LEAST = 0.1  # of the gradient's length: slopes across it are measured less exactly
MOST = 0.5  # of the rows that can be judged
FEW = 3  # rows


@torch.no_grad()
def misled(seen: Sighting, defense: Intervention, tolerance: float) -> bool:
    """Whether values or gradients were other ones, on more rows than rounding and kinks explain."""
    engine = seen.again()
    engine = replace(engine, active=replace(engine.active, defense=defense, backward="own"))
    again_N = engine.objective(seen.delta)
    gap_N = (again_N - seen.objective_N).abs() / (1 + again_N.abs())
    if 2 * int((gap_N > tolerance).sum()) > len(gap_N) or not torch.isfinite(gap_N).all():
        return True
    return _another_gradient(engine, seen, again_N)


def _another_gradient(engine: Engine, seen: Sighting, here_N: Tensor) -> bool:
    grads, length_N = seen.grads, seen.length_N
    if grads is None or length_N is None or seen.delta is None:
        return False
    size_N = total_norm(grads)
    drawn = torch.Generator().manual_seed(0)
    random = {s: torch.randn(g.shape, generator=drawn).to(g) for s, g in grads.items()}
    judged = wrong = 0
    for direction in (grads, random):
        long_N11 = total_norm(direction).clamp_min(1e-30)[:, None, None]
        v = {s: d / long_N11 for s, d in direction.items()}
        ahead_N, behind_N = (
            _slope(engine, seen, v, sign * STEP * length_N, here_N) for sign in (1, -1)
        )
        said_N = torch.stack([(grads[s] * v[s]).sum((1, 2)) for s in v]).sum(0)
        slope_N = (ahead_N + behind_N) / 2
        largest_N = torch.stack([slope_N.abs(), said_N.abs(), LEAST * size_N]).amax(0)
        # What float32 leaves of a difference of two objectives.
        noise_N = 1e-5 * (1 + here_N.abs()) / (STEP * length_N)
        smooth_N = (ahead_N - behind_N).abs() <= SMOOTH * largest_N + noise_N
        judged_N = smooth_N & (largest_N > 10 * noise_N)
        judged += int(judged_N.sum())
        wrong += int((judged_N & ((slope_N - said_N).abs() > DISAGREES * largest_N)).sum())
    return judged >= FEW and wrong > MOST * judged


def _slope(
    engine: Engine, seen: Sighting, v: Mapping[Site, Tensor], step_N: Tensor, here_N: Tensor
) -> Tensor:
    assert seen.delta is not None
    moved = {s: x + step_N[:, None, None] * v[s] for s, x in seen.delta.values.items()}
    return (engine.objective(replace(seen.delta, values=moved)) - here_N) / step_N
