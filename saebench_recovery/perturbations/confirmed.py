"""Whether a search can follow a defense's own gradient: what the objective does decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from saebench_recovery.base.sites import Site
from saebench_recovery.model.meter import Meter
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.perturbations.problem import Problem

ALIKE = 0.9  # cosine
NEAR = (0.01, 0.1)  # of the budget: how far from no perturbation gradients are compared
STEP = 0.01  # of the budget, for a difference
ROWS = 16  # at most, spread over the problem's: differences of a whole dictionary are expensive


def confirmed(problem: Problem) -> Problem:
    """The problem with gradients that differences of the objective confirm.

    They pass the defense by its own backward pass, or else by its differences in the span of the
    defended latents: by whichever the objective follows, in most of some rows, in the direction in
    which the two differ most. All rows pay for the test alike.
    """
    step = -(-problem.size // ROWS)
    some = problem.rows(torch.arange(0, problem.size, step, device=problem.budget_N.device))
    if problem._engine.booked(lambda: _follows_own(some.counting_on(Meter()))):
        return problem
    return problem.passing("measured")


def _follows_own(problem: Problem) -> bool:
    measured = problem.passing("measured")
    for share in NEAR:
        delta = _random(problem, share)
        own_NF, measured_NF = (_flat(one.gradient(delta)[1]) for one in (problem, measured))
        between_NF = normalize(measured_NF - own_NF)
        slope_N = _slope(problem, delta, between_NF)
        error_N, measured_error_N = (
            ((grad_NF * between_NF).sum(1) - slope_N).abs() for grad_NF in (own_NF, measured_NF)
        )
        differ_N = cosine_similarity(own_NF, measured_NF) < ALIKE
        if (differ_N & (measured_error_N < error_N)).float().mean() > 0.5:
            return False
    return True


def _random(problem: Problem, share: float) -> ResidualDelta:
    drawn = problem.random(f"gradients {share}")
    assert isinstance(drawn, ResidualDelta)
    return replace(drawn, values={site: share * v for site, v in drawn.values.items()})


def _slope(problem: Problem, delta: ResidualDelta, direction_NF: Tensor) -> Tensor:
    """How fast [N] the objective rises along a direction."""
    step_N = STEP * problem.pooled_radius_N
    sizes = [values[0].numel() for values in delta.values.values()]
    parts = dict(zip(delta.values, torch.split(direction_NF, sizes, 1), strict=True))
    ahead_N, behind_N = (
        problem.objective(replace(delta, values=_moved(delta, parts, sign * step_N)))
        for sign in (1, -1)
    )
    return (ahead_N - behind_N) / (2 * step_N)


def _moved(
    delta: ResidualDelta, direction: Mapping[Site, Tensor], step_N: Tensor
) -> dict[Site, Tensor]:
    return {
        site: values + step_N[:, None, None] * direction[site].view_as(values)
        for site, values in delta.values.items()
    }


def _flat(grads: Mapping[Site, Tensor]) -> Tensor:
    return torch.cat([grad_NPD.flatten(1) for grad_NPD in grads.values()], 1)
