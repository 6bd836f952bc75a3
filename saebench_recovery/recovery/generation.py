"""Greedy generation with the defense and a perturbation active at every token.

Each pass knows its tokens' absolute positions, so a delta acts where it belongs although the
cache makes every later pass one token long; the published code lost most of its delta there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from saebench_recovery.interfaces import Example, ResidualDelta
from saebench_recovery.recovery.active import ActiveDefense
from saebench_recovery.recovery.meter import Meter
from saebench_recovery.target.batch import Batch, tokens_only
from saebench_recovery.target.forward import run_tokens
from saebench_recovery.target.hooks import edited


@torch.no_grad()
def written(
    active: ActiveDefense,
    examples: Sequence[Example],
    new_tokens: int,
    meter: Meter,
    delta: ResidualDelta | None = None,
) -> tuple[str, ...]:
    """What the defended model writes after each prompt, up to `new_tokens`, without specials."""
    target = active.target
    prompts = [torch.tensor(example.prompt, device=target.device) for example in examples]
    ids_RQ = pad_sequence(prompts, True, padding_side="left")
    length_R = torch.tensor([len(p) for p in prompts], device=target.device)
    column_Q = torch.arange(ids_RQ.shape[1], device=target.device)
    position_RQ = column_Q - (ids_RQ.shape[1] - length_R)[:, None]
    mask_RT = position_RQ >= 0
    step = tokens_only(ids_RQ, mask_RT, position_RQ.clamp(min=0))
    cache = DynamicCache()
    going_R = torch.ones_like(length_R, dtype=torch.bool)
    end = target.tokenizer.eos_token_id
    found: list[Tensor] = []
    for index in range(new_tokens):
        token_R = _next(active, step, mask_RT, cache, meter, delta)
        found.append(torch.where(going_R, token_R, -1))
        going_R = going_R & (token_R != end)
        if not going_R.any():
            break
        one_R1 = torch.ones_like(mask_RT[:, :1])
        mask_RT = torch.cat([mask_RT, one_R1], 1)
        step = tokens_only(token_R[:, None], one_R1, (length_R + index)[:, None])
    rows = torch.stack(found, 1).tolist()
    tokens = [[t for t in row if t >= 0] for row in rows]
    return tuple(target.tokenizer.decode(t, skip_special_tokens=True) for t in tokens)


def _next(
    active: ActiveDefense,
    step: Batch,
    mask_RT: Tensor,
    cache: DynamicCache,
    meter: Meter,
    delta: ResidualDelta | None,
) -> Tensor:
    """The most likely next token [R]; the cache grows by the step's tokens."""
    target = active.target

    def work() -> Tensor:
        with edited(target.model, active.edits(step, delta)):
            hidden_RQD = run_tokens(target, step, mask_RT, cache)
        return target.logits(hidden_RQD[:, -1]).argmax(-1)

    R, Q = step.ids_RQ.shape
    # All one-token passes count as one kind: their pasts differ by a few tokens of attention.
    return meter.run(work, rows=R, tokens=Q, layers=target.depth(), logits="last")
