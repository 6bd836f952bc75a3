"""What suffix spaces share: where a suffix stands, and the windows that begin with it.

The suffix stands where the task says, tokens behind it move on, and the defense is active on it as
everywhere. What comes before it is cached once; a pass runs the suffix and what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import forward
from saebench_recovery.model.roles import Judge
from saebench_recovery.perturbations.drift_penalty import DriftPenalty
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.retokenise import vocabulary
from saebench_recovery.perturbations.space import Posing
from saebench_recovery.perturbations.windows import Windows, lay_out

EMBEDDED = Site(0, "hook_resid_pre")


@dataclass(frozen=True)
class SuffixLayout:
    """The suffixes of N prompts: before which token [N] each stands, in which prompts.

    In the windows stands `token`, `length` times; free embeddings displace its own, and other
    tokens take its place.
    """

    plain: tuple[Example, ...]
    at_N: Tensor
    token: int
    length: int

    def rows(self, index: Tensor) -> Self:
        plain = tuple(self.plain[i] for i in index.tolist())
        return replace(self, plain=plain, at_N=self.at_N[index])


def lay_out_suffix(posing: Posing, length: int) -> tuple[Windows, SuffixLayout]:
    """Windows with a suffix of `length` tokens in each prompt.

    Raises:
        UserError: a prompt with its suffix and answer is longer than the model's context.
    """
    target = posing.active.target
    token = vocabulary(target).ordinary[0]
    at = [posing.task.insertion(group[0]) for group in posing.groups]
    _check_context(target.model.config, posing, length)
    longer = [
        [example.with_inserted(a, [token] * length) for example in group]
        for group, a in zip(posing.groups, at, strict=True)
    ]
    # A suffix is part of the prompt: it comes before any defense, whatever the threat model.
    before = replace(posing, active=replace(posing.active, threat_model="reclamp"), groups=longer)
    windows = lay_out(before, torch.tensor(at)[:, None] + torch.arange(length), [EMBEDDED])
    plain = tuple(example for group in posing.groups for example in group)
    return windows, SuffixLayout(plain, windows.positions_NP[:, 0].clone(), token, length)


def penalised(problem: Problem, layout: SuffixLayout, weight: float, margin: float) -> Problem:
    """The same problem with a penalty on the drift of the defended latents.

    A relative drift of 1 costs `weight` times the clean margin, of which a share of `margin` is
    enough.
    """
    if not weight:
        return problem
    price_N, ceiling_N = weight * problem.goal_N.abs(), margin * problem.goal_N
    engine = problem._engine

    def work() -> DriftPenalty:
        held = _held_to_prompts(engine.active, engine.task, engine.batch, layout)
        return replace(held, price_N=price_N, ceiling_N=ceiling_N)

    penalty = engine.booked(work)
    return problem.with_engine(lambda e: replace(e, penalty=penalty))


@torch.no_grad()
def _held_to_prompts(
    active: DefendedModel, task: Judge, windows: Batch, layout: SuffixLayout
) -> DriftPenalty:
    """Read the plain prompts under the defense, and place them where the suffix moves them.

    Drift counts from the task's first position on, as in the scoring.
    """
    prompts, trace = active.target.batch(layout.plain), Trace()
    forward(active.target, prompts, active.edits(prompts, trace=trace))
    latents, share = active.latents, prompts.rows_per_example
    before_NQ = windows.position_RQ[:: windows.rows_per_example] - layout.length
    first = [min((*task.positions(e), len(e.prompt) - 1)) for e in layout.plain]
    first_N = torch.tensor(first, device=before_NQ.device)
    least_N = torch.maximum(torch.minimum(layout.at_N, prompts.readout_E), first_N)
    counts_NQ = windows.mask_RQ[:: windows.rows_per_example] & (before_NQ >= least_N[:, None])
    index_NQ1 = before_NQ.clamp(0, prompts.ids_RQ.shape[1] - 1)[:, :, None]

    def moved(z_RQS: Tensor) -> Tensor:
        z_NQS = z_RQS[::share].gather(1, index_NQ1.expand(-1, -1, z_RQS.shape[2]))
        return z_NQS * counts_NQ[:, :, None]

    def norm_N(readings: list[Tensor]) -> Tensor:
        return torch.stack([moved(z).square().sum((1, 2)) for z in readings]).sum(0).sqrt()

    defended_N = norm_N([trace.z[site] for site in latents])
    # Where the defense leaves nothing, drift is relative to what it took away.
    undefended_N = norm_N([latents[site].read(trace.before[site]) for site in latents])
    scale_N = torch.where(defended_N > 0, defended_N, undefended_N)
    nothing_N = torch.zeros_like(scale_N)
    return DriftPenalty(
        {site: moved(trace.z[site]) for site in latents},
        counts_NQ,
        torch.where(scale_N > 0, scale_N, 1.0),
        nothing_N,
        nothing_N,
    )


def _check_context(config: Any, posing: Posing, length: int) -> None:
    context: int = config.max_position_embeddings
    examples: Sequence[Example] = [e for group in posing.groups for e in group]
    for example in examples:
        answer = max(posing.task.new_tokens, example.longest_answer)
        if len(example.prompt) + length + answer > context:
            raise UserError(
                f"a suffix of {length} tokens does not fit: the prompt of {example.id!r} has "
                f"{len(example.prompt)} and its answer up to {answer}, and the model reads "
                f"{context}; try a shorter one (-A length=...)"
            )
