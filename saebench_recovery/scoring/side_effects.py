"""What a defense does to behaviours and text that it should leave alone."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from saebench_recovery.interfaces import Example
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import final_states
from saebench_recovery.schema import SideEffects
from saebench_recovery.scoring.passes import outputs
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.selection.latent_scores import CHUNK


def side_effects(setting: Setting) -> SideEffects:
    """What is kept of the retain examples, and KL and cross-entropy on neutral text."""
    task, bare, active = setting.task, setting.bare, setting.active
    retain = setting.retain
    kept = retain.kept(active)
    kl, ce = _neutral(setting)
    return SideEffects(
        retain_n=retain.count,
        retain_known=len(retain.known),
        retain_kept=kept,
        kl=kl,
        ce_increase=ce,
        figures=task.side_figures(
            *(partial(outputs, active=model, task=task, scored=False) for model in (bare, active))
        ),
    )


@torch.no_grad()
def _neutral(setting: Setting) -> tuple[float | None, float | None]:
    """Mean KL(clean || defended) and cross-entropy increase, nats per predicted token."""
    target = setting.target
    texts = [target.encode(text) for text in target.neutral]
    kl = ce = tokens = 0.0
    for begin in range(0, len(texts), CHUNK):
        chunk = texts[begin : begin + CHUNK]
        batch = target.batch([Example("", ids, ((0,),)) for ids in chunk])
        clean, defended = (_logprobs(model, batch) for model in (setting.bare, setting.active))
        known_NQ = batch.mask_RQ[:, 1:]
        next_NQ1 = batch.ids_RQ[:, 1:, None]
        gap = clean.gather(2, next_NQ1) - defended.gather(2, next_NQ1)
        kl += float((clean.exp() * (clean - defended)).sum(2)[known_NQ].sum())
        ce += float(gap[:, :, 0][known_NQ].sum())
        tokens += float(known_NQ.sum())
    return (kl / tokens, ce / tokens) if tokens else (None, None)


def _logprobs(active: DefendedModel, batch: Batch) -> Tensor:
    """Next-token log-probabilities [R, Q - 1, V]."""
    hidden_RQD = final_states(active.target, batch, active.edits(batch))
    return active.target.logits(hidden_RQD[:, :-1]).log_softmax(-1)
