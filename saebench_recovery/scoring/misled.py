"""Whether a search was shown what scoring finds: the same values, and a gradient that is theirs.

A defense may be a function with an honest gradient wherever it is checked beforehand, and another
one in a search: for batches of a search's size, for some rows of them, by the stack of calls, after
some number of them, in a copy. So what the search was shown is repeated by the defense that judges:
of every row its best point and one drawn from all, and a few looks with their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.model.roles import Intervention
from saebench_recovery.perturbations.engine import Engine, Sighting, Witness
from saebench_recovery.perturbations.ledger import Points, secret
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import total_norm

STEP = 0.02  # of each row's budget
SMOOTH, DISAGREES = 0.1, 0.3  # relative to the slope
LEAST = 0.1  # of the gradient's length: slopes across it are measured less exactly
MOST = 0.5  # of the rows whose gradient can be judged
FEW = 3  # rows
# Of the rows whose values were looked at again: only where a function jumps does rounding move one.
STRAY, STRAYS = 0.01, 1


@torch.no_grad()
def misled(shown: Witness, judging: Problem, defense: Intervention, tolerance: float) -> bool:
    """Whether values or gradients were other ones, on more rows than rounding and kinks explain.

    `judging` is the problem as it is scored, with the rows that the search had.
    """
    # Where tokens are searched, deltas are only there to be differentiated.
    by_deltas = isinstance(judging.nothing(), ResidualDelta)
    points = shown.ledger.kept if shown.ledger is not None and by_deltas else ()
    looks = (*shown.looks.values(), *shown.readings.values())
    return any(_other_points(point, judging, tolerance) for point in points) or any(
        _another_look(look, defense, tolerance) for look in looks
    )


def _other_points(points: Points, judging: Problem, tolerance: float) -> bool:
    delta, objective_R, kept_R = points.all()
    again_R = judging.objective(delta)
    return _differ(again_R[kept_R], objective_R[kept_R], tolerance)


def _another_look(seen: Sighting, defense: Intervention, tolerance: float) -> bool:
    engine, active = seen.again(), replace(seen.engine.active, defense=defense, backward="own")
    engine = replace(engine, active=active, witness=Witness())
    if seen.readings is not None:
        return _other_readings(engine, seen.delta, seen.readings, tolerance)
    assert seen.objective_N is not None
    again_N = engine.objective(seen.delta)
    if _differ(again_N, seen.objective_N, tolerance):
        return True
    # What passes it otherwise is no gradient of this function.
    return seen.engine.active.backward == "own" and _another_gradient(engine, seen, again_N)


def _other_readings(
    engine: Engine, delta: ResidualDelta | None, seen: Mapping[Site, Tensor], tolerance: float
) -> bool:
    assert delta is not None
    again = engine.read(delta, max(seen)).p
    far_N = torch.stack(
        [
            (again[s] - seen[s]).flatten(1).norm(dim=1) / (1 + again[s].flatten(1).norm(dim=1))
            for s in seen
        ]
    ).amax(0)
    return _differ(torch.zeros_like(far_N), far_N, tolerance)


def _differ(again_N: Tensor, shown_N: Tensor, tolerance: float) -> bool:
    """Whether more values differ than stray ones; equal infinities do not."""
    near_N = (again_N - shown_N).abs() <= tolerance * (1 + again_N.abs())
    other = int((~near_N & (again_N != shown_N)).sum())
    return other > max(min(STRAYS, len(shown_N) - 1), STRAY * len(shown_N))


def _another_gradient(engine: Engine, seen: Sighting, here_N: Tensor) -> bool:
    grads, length_N = seen.grads, seen.length_N
    if grads is None or length_N is None or seen.delta is None:
        return False
    size_N = total_norm(grads)
    drawn = secret()
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
