"""Which tokens of a suffix to replace: what the gradient proposes, and what a pass makes of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.model import products
from saebench_recovery.model.adaptive_batches import AdaptiveBatches
from saebench_recovery.model.attention import FrozenPrefix
from saebench_recovery.model.packing import Begun
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
    problem: Problem, ids_NLBL: Tensor, recorded: FrozenPrefix, batches: AdaptiveBatches
) -> Tensor:
    """Objective [N, L, B] of suffixes; those at [:, i] agree before token i with the one recorded.

    The rows of one example share the prompt's keys and values and those of the recorded suffix,
    and run what is behind their beginning, two in a row: one that begins alike for long beside one
    that does so for as short a time.
    """
    engine = problem._engine
    N, L, B, _ = ids_NLBL.shape
    begun_T = torch.arange(L, device=ids_NLBL.device).repeat_interleave(B)
    pair_K2 = _pairs(L * B).to(ids_NLBL.device)
    K, ids_NTL = len(pair_K2), ids_NLBL.flatten(1, 2)
    behind = _behind(engine, L, recorded)

    def work(unit: Tensor) -> Tensor:
        index = unit.to(ids_NTL.device)
        row, pair = (index // K).repeat_interleave(2), pair_K2[index % K].flatten()
        shown = with_tokens(behind.rows(row), ids_NTL[row, pair])
        begun = begun_T[pair].repeat_interleave(shown.batch.rows_per_example)
        if engine.task.pool is not None:  # a mean needs all that it is over
            begun = torch.zeros_like(begun)
        batch = replace(shown.batch, begun=Begun(begun, L, together=2))
        return replace(shown, batch=batch).objective(None).view(-1, 2)

    found_NK2 = engine.booked(lambda: batches.over(N * K, K, work)).view(N, K, 2)
    value_NT = found_NK2.new_empty(N, L * B)
    value_NT[:, pair_K2] = found_NK2
    return value_NT.view(N, L, B)


def noted(problem: Problem, objective_N: Tensor) -> None:
    """Note which rows have their objective at a suffix that is kept."""
    problem._engine.reached(objective_N, problem.goal_N)


def batches_for(problem: Problem, numbers: int) -> AdaptiveBatches:
    """Batches of pairs of candidates that hold so many residual numbers.

    An accelerator that runs out of memory says so; elsewhere batches never grow.
    """
    engine = problem._engine
    _, Q, D = engine.start.resid_RQD.shape
    rows = numbers // (2 * Q * D * engine.batch.rows_per_example)
    on_accelerator = engine.start.resid_RQD.device.type != "cpu"
    return AdaptiveBatches(rows, 2**20 if on_accelerator else rows)


def _pairs(count: int) -> Tensor:
    """The first of so many with the last, and so on [K, 2]; one in the middle with itself."""
    first_K = torch.arange((count + 1) // 2)
    return torch.stack([first_K, count - 1 - first_K], 1)


def _behind(engine: Engine, count: int, recorded: FrozenPrefix) -> Engine:
    """The same windows with the recorded tokens, which so many have, behind each one's prefix."""
    V, start = engine.variants, engine.start
    start = replace(
        start,
        prefix=start.prefix.extended(recorded, count, engine.size),
        prefix_mask_EP=start.prefix_mask_EP.repeat_interleave(V, 0),
        pooled=start.pooled
        and (
            start.pooled[0].repeat_interleave(V, 0),
            start.pooled[1].repeat_interleave(V, 0),
        ),
        at_tokens=True,
    )
    return replace(engine, start=start)
