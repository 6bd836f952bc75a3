"""Which tokens of a suffix to replace: what the gradient proposes, and what a pass makes of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.model import products
from saebench_recovery.model.adaptive_batches import AdaptiveBatches
from saebench_recovery.model.attention import FrozenPrefix
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.suffix import EMBEDDED
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens, with_tokens


def proposed(problem: Problem, ids_NL: Tensor, count: int) -> tuple[Tensor, Tensor, FrozenPrefix]:
    """What the gradient at a suffix of tokens says of replacing each.

    The objective [N] there; for each position the `count` allowed tokens [N, L, count] that
    raise it most to first order, or -1 where no gradient comes through; and the pass's keys
    and values, for `evaluated`.
    """
    space, engine = SuffixTokens.of(problem), problem._engine
    recorded = engine.start.prefix.recording()
    shown = with_tokens(engine, ids_NL)
    shown = replace(shown, start=replace(shown.start, prefix=recorded))
    weight_VD, allowed_V = engine.active.target.embedding.weight, space.words.allowed_V

    def work() -> tuple[Tensor, Tensor]:
        leaf_NLD = space.zeros().values[EMBEDDED].requires_grad_()
        with torch.enable_grad():
            delta = ResidualDelta({EMBEDDED: leaf_NLD}, space.positions_NP)
            objective_N = shown.objective(delta)
            (grad_NLD,) = torch.autograd.grad(objective_N.sum(), leaf_NLD)
        best = [
            products.linear(grad_LD.to(weight_VD.dtype), weight_VD, None)
            .masked_fill(~allowed_V, -torch.inf)
            .topk(min(count, int(allowed_V.sum())))
            .indices
            for grad_LD in grad_NLD  # [N, L, V] at once would be most of the memory
        ]
        no_gradient_N = grad_NLD.flatten(1).abs().amax(1) == 0
        best_NLK = torch.stack(best).masked_fill(no_gradient_N[:, None, None], -1)
        return objective_N.detach(), best_NLK

    objective_N, best_NLK = engine.booked(work)
    return engine.reached(objective_N, problem.goal_N), best_NLK, recorded


@torch.no_grad()
def evaluated(
    problem: Problem,
    ids_NBL: Tensor,
    first: int,
    recorded: FrozenPrefix,
    batches: AdaptiveBatches,
) -> Tensor:
    """Objective [N, B] of suffixes that agree before token `first` with the one recorded.

    The rows of one example share the prompt's keys and values and those of that beginning.
    """
    engine = problem._engine
    count = 0 if engine.task.pool is not None else first  # a mean needs all that it is over
    N, B, L = ids_NBL.shape
    behind = _behind(engine, count, recorded)
    ids_RK = ids_NBL[:, :, count:].reshape(N * B, L - count)

    def work(row: Tensor) -> Tensor:
        index = row.to(ids_RK.device)
        return with_tokens(behind.rows(index // B), ids_RK[index]).objective(None)

    return engine.booked(lambda: batches.over(N * B, B, work)).view(N, B)


def noted(problem: Problem, objective_N: Tensor) -> None:
    """Note which rows have their objective at a suffix that is kept."""
    problem._engine.reached(objective_N, problem.goal_N)


def batches_for(problem: Problem, numbers: int) -> AdaptiveBatches:
    """Batches of candidates that hold so many residual numbers.

    An accelerator that runs out of memory says so; elsewhere batches never grow.
    """
    engine = problem._engine
    _, Q, D = engine.start.resid_RQD.shape
    rows = numbers // (Q * D * engine.batch.rows_per_example)
    on_accelerator = engine.start.resid_RQD.device.type != "cpu"
    return AdaptiveBatches(rows, 2**20 if on_accelerator else rows)


def _behind(engine: Engine, count: int, recorded: FrozenPrefix) -> Engine:
    """The same windows without the suffix's first tokens: those are cached."""
    if count == 0:
        return engine
    prefix = engine.start.prefix.extended(recorded, count, engine.size)
    mask_NP = engine.start.prefix_mask_EP.repeat_interleave(engine.variants, 0)
    mask_NP = torch.nn.functional.pad(mask_NP, (0, count), value=True)
    start = replace(engine.start, prefix=prefix, prefix_mask_EP=mask_NP, at_tokens=True)
    return replace(
        engine,
        batch=engine.batch.after(count),
        start=start,
        penalty=engine.penalty and engine.penalty.after(count),
    )
