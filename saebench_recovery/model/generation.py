"""Greedy generation with the defense and a perturbation active at every token.

Each pass knows its tokens' absolute positions, so a delta acts where it belongs although the
cache makes every later pass one token long; the published code lost most of its delta there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from saebench_recovery.model.batch import Batch, tokens_only
from saebench_recovery.model.beginnings import Beginnings
from saebench_recovery.model.cached_pass import left_padded, ran
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.drafts import Drafts
from saebench_recovery.model.examples import Example
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.model.perturbation import ResidualDelta

LOOK_EVERY = 4  # tokens between looks at which rows have ended: a look costs a device sync


def written(
    active: DefendedModel,
    examples: Sequence[Example],
    new_tokens: int,
    delta: ResidualDelta | None = None,
    drafts: Drafts | None = None,
) -> tuple[str, ...]:
    """What the defended model writes after each prompt, up to `new_tokens`, without specials."""
    found = continued(active, examples, new_tokens, delta, drafts)
    tokenizer = active.target.tokenizer
    return tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in found)


@torch.no_grad()
def continued(
    active: DefendedModel,
    examples: Sequence[Example],
    new_tokens: int,
    delta: ResidualDelta | None = None,
    drafts: Drafts | None = None,
) -> list[tuple[int, ...]]:
    """The ids that the defended model adds to each prompt, up to `new_tokens`, its end included.

    What comes before the first perturbed position is run once for all examples that share it.
    Texts among the `drafts` are confirmed in one pass, and what is written is put there.

    Raises:
        UserError: a prompt with so many new tokens is longer than the context.
    """
    for example in examples:
        active.target.check_fits(example, new_tokens)
    beginnings = Beginnings() if drafts is None else drafts.beginnings
    step, mask_RT, cache = _prefilled(active, examples, delta, beginnings)
    ends = torch.tensor(_ends(active.target), dtype=torch.long, device=mask_RT.device)
    rows = torch.arange(len(examples), device=mask_RT.device)
    found_RT = torch.full((len(examples), new_tokens), -1, device=mask_RT.device)
    going = torch.ones_like(rows, dtype=torch.bool)
    for index in range(new_tokens):
        token = _next(active, step, mask_RT, cache, delta)
        found_RT[rows, index] = torch.where(going, token, -1)
        going = going & ~torch.isin(token, ends)
        position = step.position_RQ[:, -1] + 1
        look = index % LOOK_EVERY == LOOK_EVERY - 1
        if index == 0 and drafts is not None:
            draft_RT = drafts.beginning(examples, token)
            again = _confirmed(active, draft_RT, position, mask_RT, cache, delta)
            found_RT[again, : draft_RT.shape[1]] = draft_RT[again]
            going, look = going & ~again, True
        if look:
            left = going.nonzero()[:, 0]
            if left.numel() == 0:
                break
            if left.numel() < going.numel():
                rows, token, position, mask_RT, going = (
                    t[left] for t in (rows, token, position, mask_RT, going)
                )
                cache.batch_select_indices(left.cpu())  # a block's device takes these
                delta = None if delta is None else delta.rows(left)
        new_R1 = torch.ones_like(mask_RT[:, :1])
        mask_RT = torch.cat([mask_RT, new_R1], 1)
        step = tokens_only(token[:, None], new_R1, position[:, None])
    found = [tuple(t for t in row if t >= 0) for row in found_RT.tolist()]
    if drafts is not None:
        drafts.keep(examples, found)
    return found


def _confirmed(
    active: DefendedModel,
    draft_RT: Tensor,
    position_R: Tensor,
    mask_RT: Tensor,
    cache: DynamicCache,
    delta: ResidualDelta | None,
) -> Tensor:
    """Bool [R]: the drafts that are written, as they begin; the cache is left as it is.

    -1 stands behind a draft, and for none.
    """
    given_RT, next_RT = draft_RT[:, :-1], draft_RT[:, 1:]
    same_R = (draft_RT >= 0).any(1)
    if next_RT.shape[1] == 0:
        return same_R
    seen_RT = given_RT >= 0
    later_RT = position_R[:, None] + torch.arange(given_RT.shape[1], device=position_R.device)
    step = tokens_only(given_RT.clamp(min=0), seen_RT, later_RT)
    hidden_RTD = ran(active, step, torch.cat([mask_RT, seen_RT], 1), cache, delta)
    cache.crop(-given_RT.shape[1])
    for index, wanted_R in enumerate(next_RT.unbind(1)):  # all logits at once could be too many
        likeliest_R = active.target.logits(hidden_RTD[:, index]).argmax(-1)
        same_R &= (likeliest_R == wanted_R) | (wanted_R < 0)
    return same_R


def _prefilled(
    active: DefendedModel,
    examples: Sequence[Example],
    delta: ResidualDelta | None,
    beginnings: Beginnings,
) -> tuple[Batch, Tensor, DynamicCache]:
    """The last tokens of every prompt, still to be run, with their mask and what they can see.

    These parts are equally long, and padded on the left as what comes before them is. So there
    is never padding between two real tokens: a sliding window would count it.
    """
    device = active.target.device
    prompts = [example.prompt for example in examples]
    width = 1
    if delta is not None:
        first = torch.where(delta.positions_EP < 0, 10**9, delta.positions_EP).amin(1).tolist()
        width = max(1, *(len(p) - f for p, f in zip(prompts, first, strict=True)))
    before = [prompt[:-width] for prompt in prompts]
    place = {tokens: i for i, tokens in enumerate(dict.fromkeys(before))}
    row_R = torch.tensor([place[tokens] for tokens in before], device=device)
    cache, shared_mask_EP = beginnings.cache(active, list(place))
    if cache.layers:
        cache.batch_select_indices(row_R.cpu())
    step, mask_RQ = left_padded([p[-width:] for p in prompts], list(map(len, prompts)), device)
    return step, torch.cat([shared_mask_EP[row_R], mask_RQ], 1), cache


def _next(
    active: DefendedModel,
    step: Batch,
    mask_RT: Tensor,
    cache: DynamicCache,
    delta: ResidualDelta | None = None,
) -> Tensor:
    """The most likely token [R] after each row; the cache grows by the step's tokens."""
    hidden_RQD = ran(active, step, mask_RT, cache, delta)
    return active.target.logits(hidden_RQD[:, -1]).argmax(-1)


def _ends(target: LanguageModel) -> list[int]:
    """Tokens after which nothing is written: a chat model has an end of turn beside its EOS."""
    model: Any = target.model
    declared = getattr(model.generation_config, "eos_token_id", None)
    several = declared if isinstance(declared, list) else [declared]
    return sorted({end for end in (*several, target.tokenizer.eos_token_id) if end is not None})
