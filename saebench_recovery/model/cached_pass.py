"""Passes over tokens behind a cache that grows, with the defense and a perturbation active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from saebench_recovery.model.batch import Batch, tokens_only
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import run_tokens
from saebench_recovery.model.hooks import edited, kinds
from saebench_recovery.model.meter import counted
from saebench_recovery.model.perturbation import ResidualDelta


def left_padded(
    rows: Sequence[tuple[int, ...]], ends: Sequence[int], device: str
) -> tuple[Batch, Tensor]:
    """Rows of tokens that end before position `ends`, and their mask; padding lies before 0."""
    ids_RQ = pad_sequence([torch.tensor(r, dtype=torch.long) for r in rows], True, 0, "left")
    Q = ids_RQ.shape[1]
    position_RQ = torch.tensor(ends)[:, None] + torch.arange(-Q, 0)
    length_R1 = torch.tensor([len(row) for row in rows])[:, None]
    mask_RQ = (torch.arange(-Q, 0) >= -length_R1).to(device)
    return tokens_only(ids_RQ.to(device), mask_RQ, position_RQ.to(device)), mask_RQ


def ran(
    active: DefendedModel,
    step: Batch,
    mask_RT: Tensor,
    cache: DynamicCache,
    delta: ResidualDelta | None = None,
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
