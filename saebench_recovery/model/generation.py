"""Greedy generation with the defense and a perturbation active at every token.

Each pass knows its tokens' absolute positions, so a delta acts where it belongs although the
cache makes every later pass one token long; the published code lost most of its delta there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from saebench_recovery.model.batch import Batch, tokens_only
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.drafts import Drafts
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import run_tokens
from saebench_recovery.model.hooks import edited, kinds
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.model.meter import counted
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

    Examples with one prompt (other budgets, another wanted answer) share the pass over what
    comes before their first perturbed position. Texts among the `drafts` are confirmed in one
    pass, and what is written is put there.

    Raises:
        UserError: a prompt with so many new tokens is longer than the context.
    """
    for example in examples:
        active.target.check_fits(example, new_tokens)
    step, mask_RT, cache = _prefilled(active, examples, delta)
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
    hidden_RTD = _ran(active, step, torch.cat([mask_RT, seen_RT], 1), cache, delta)
    cache.crop(-given_RT.shape[1])
    for index, wanted_R in enumerate(next_RT.unbind(1)):  # all logits at once could be too many
        likeliest_R = active.target.logits(hidden_RTD[:, index]).argmax(-1)
        same_R &= (likeliest_R == wanted_R) | (wanted_R < 0)
    return same_R


def _prefilled(
    active: DefendedModel, examples: Sequence[Example], delta: ResidualDelta | None
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
    cache = DynamicCache()  # without a config it keeps whole prefixes for windowed layers too
    shared, shared_mask_EP = _left_padded(list(place), list(map(len, place)), device)
    if shared.ids_RQ.shape[1]:
        _next(active, shared, shared_mask_EP, cache)
        cache.batch_select_indices(row_R.cpu())
    step, mask_RQ = _left_padded([p[-width:] for p in prompts], list(map(len, prompts)), device)
    return step, torch.cat([shared_mask_EP[row_R], mask_RQ], 1), cache


def _left_padded(
    rows: Sequence[tuple[int, ...]], ends: Sequence[int], device: str
) -> tuple[Batch, Tensor]:
    """Rows of tokens that end before position `ends`, and their mask; padding lies before 0."""
    ids_RQ = pad_sequence([torch.tensor(r, dtype=torch.long) for r in rows], True, 0, "left")
    Q = ids_RQ.shape[1]
    position_RQ = torch.tensor(ends)[:, None] + torch.arange(-Q, 0)
    mask_RQ = (position_RQ >= 0).to(device)
    return tokens_only(ids_RQ.to(device), mask_RQ, position_RQ.to(device)), mask_RQ


def _next(
    active: DefendedModel,
    step: Batch,
    mask_RT: Tensor,
    cache: DynamicCache,
    delta: ResidualDelta | None = None,
) -> Tensor:
    """The most likely token [R] after each row; the cache grows by the step's tokens."""
    hidden_RQD = _ran(active, step, mask_RT, cache, delta)
    return active.target.logits(hidden_RQD[:, -1]).argmax(-1)


def _ran(
    active: DefendedModel,
    step: Batch,
    mask_RT: Tensor,
    cache: DynamicCache,
    delta: ResidualDelta | None,
) -> Tensor:
    """Final-norm states [R, Q, D] of a step's tokens, by which the cache grows."""
    target = active.target
    edits = active.edits(step, delta)
    R, Q = step.ids_RQ.shape

    def work() -> Tensor:
        # Padding has a place before the prompt, for the delta's sake, but no embedding there.
        inside = replace(step, position_RQ=step.position_RQ.clamp(min=0))
        with edited(target.model, edits):
            return run_tokens(target, inside, mask_RT, cache)

    # The past's length too: otherwise the first pass of a process would decide what all cost.
    kind = ("generation", Q, mask_RT.shape[1], *kinds(edits))
    layers = target.depth()
    return counted(target.model, work, kind=kind, rows=R, token_layers=R * Q * layers)


def _ends(target: LanguageModel) -> list[int]:
    """Tokens after which nothing is written: a chat model has an end of turn beside its EOS."""
    model: Any = target.model
    declared = getattr(model.generation_config, "eos_token_id", None)
    several = declared if isinstance(declared, list) else [declared]
    return sorted({end for end in (*several, target.tokenizer.eos_token_id) if end is not None})
