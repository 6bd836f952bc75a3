"""Which tokens of a suffix to replace: what the gradient proposes, and what a pass makes of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.model import products
from saebench_recovery.model.adaptive_batches import AdaptiveBatches
from saebench_recovery.model.attention import FrozenPrefix
from saebench_recovery.model.forward import final_states
from saebench_recovery.model.hooks import blocks
from saebench_recovery.model.packing import Begun
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.model.scores import sampled
from saebench_recovery.model.vocabulary_sample import SHARE, Samples
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.suffix import EMBEDDED
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens, with_tokens

FINALISTS = 16  # candidates that the whole vocabulary decides between


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
    base_NL: Tensor,
    ids_NLBL: Tensor,
    tried_NLB: Tensor,
    recorded: FrozenPrefix,
    batches: AdaptiveBatches,
) -> Tensor:
    """Objective [N, L, B] of suffixes; those at [:, i] agree before token i with the base.

    Minus infinity for those that are not tried. Where to sum over the vocabulary is much of a pass,
    part of it says which are the best `FINALISTS`; of the others nothing more is asked, and minus
    infinity stands for them too.
    """
    shape, device = tried_NLB.shape, ids_NLBL.device
    N, L, B = shape
    ids_NTL, tried_NT = ids_NLBL.flatten(1, 2), tried_NLB.flatten(1)
    begun_NT = torch.arange(L, device=device).repeat_interleave(B).expand(N, -1)
    samples = _samples(problem, base_NL) if worthwhile(problem._engine, L, L * B) else None
    value_NT = _objectives(problem, ids_NTL, begun_NT, recorded, batches, samples)
    value_NT = value_NT.masked_fill(~tried_NT, -torch.inf)
    if samples is None:
        return value_NT.view(shape)
    best_NK = value_NT.topk(FINALISTS).indices.sort(1).values
    row_N1 = torch.arange(N, device=device)[:, None]
    ids_NKL, begun_NK = ids_NTL[row_N1, best_NK], begun_NT.gather(1, best_NK)
    exact_NK = _objectives(problem, ids_NKL, begun_NK, recorded, batches)
    exact_NT = torch.full_like(value_NT, -torch.inf).scatter(1, best_NK, exact_NK)
    return exact_NT.masked_fill(~tried_NT, -torch.inf).view(shape)


def worthwhile(engine: Engine, length: int, count: int) -> bool:
    """Whether the products that a part of the vocabulary saves are more than those it costs.

    Of each candidate it saves most of the logits where answers are read. The finalists, so few of
    so many, run once more what is behind their beginning. Twice as many, as there is more to it
    than products.
    """
    batch, target = engine.batch, engine.active.target
    if engine.wanted_NV is not None or batch.forced_RQ is None or count <= FINALISTS:
        return False
    R, Q = batch.ids_RQ.shape
    again, states = FINALISTS / count, float((batch.forced_RQ >= 0).sum()) / R
    saved = states * float(target.embedding.weight.numel()) * (1 - 1 / SHARE - again)
    body = sum(weight.numel() for block in blocks(target.model) for weight in block.parameters())
    return saved > 2 * again * body * (Q - (length - 1) / 2)


def _samples(problem: Problem, ids_NL: Tensor) -> Samples:
    """A part of the vocabulary for suffixes near each of these."""
    shown = with_tokens(problem._engine, ids_NL)

    def work() -> Samples:
        target, edits = shown.active.target, shown.active.edits(shown.batch)
        return sampled(target, shown.batch, final_states(target, shown.batch, edits, shown.start))

    return shown.booked(work)


def _objectives(
    problem: Problem,
    ids_NTL: Tensor,
    begun_NT: Tensor,
    recorded: FrozenPrefix,
    batches: AdaptiveBatches,
    samples: Samples | None = None,
) -> Tensor:
    """Objective [N, T] of suffixes that begin with so many of the recorded tokens, ascending.

    The rows of one example share the prompt's keys and values and those of the recorded suffix,
    and run what is behind their beginning, two in a row: one that begins alike for long beside one
    that does so for as short a time.
    """
    engine = problem._engine
    N, T, L = ids_NTL.shape
    pair_K2 = _pairs(T).to(ids_NTL.device)
    K, behind = len(pair_K2), _behind(engine, L, recorded)

    def work(unit: Tensor) -> Tensor:
        index = unit.to(ids_NTL.device)
        row, pair = (index // K).repeat_interleave(2), pair_K2[index % K].flatten()
        shown = with_tokens(behind.rows(row), ids_NTL[row, pair])
        begun = begun_NT[row, pair].repeat_interleave(shown.batch.rows_per_example)
        if engine.task.pool is not None:  # a mean needs all that it is over
            begun = torch.zeros_like(begun)
        batch = replace(
            shown.batch,
            begun=Begun(begun, L, together=2),
            samples=samples and samples.at(row),
        )
        return replace(shown, batch=batch).objective(None).view(-1, 2)

    found_NK2 = engine.booked(lambda: batches.over(N * K, K, work)).view(N, K, 2)
    value_NT = found_NK2.new_empty(N, T)
    value_NT[:, pair_K2] = found_NK2
    return value_NT


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
