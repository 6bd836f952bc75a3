"""What a defense does to behaviours and text that it should leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from saebench_recovery.interfaces import Example, Task
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import final_states, forward
from saebench_recovery.model.meter import Meter
from saebench_recovery.schema import SideEffects
from saebench_recovery.scoring.passes import outputs
from saebench_recovery.selection.latent_scores import CHUNK


def side_effects(active: DefendedModel, task: Task, meter: Meter) -> SideEffects:
    """Retained accuracy, and KL and cross-entropy on neutral text, clean against defended."""
    target = active.target
    retain = task.examples(target, "retain")
    bare = DefendedModel(target, None)
    right = _right(retain, bare, meter)
    known = [e for e, ok in zip(retain, right, strict=True) if ok]
    kept = _right(known, active, meter)
    kl, ce = _neutral(active, meter)
    return SideEffects(
        retain_n=len(retain),
        retain_accuracy_clean=len(known) / len(retain) if retain else None,
        retain_accuracy_defended=sum(kept) / len(known) if known else None,
        kl=kl,
        ce_increase=ce,
        figures=task.side_figures(
            *(partial(outputs, active=a, task=task, meter=meter) for a in (bare, active))
        ),
    )


@torch.no_grad()
def _right(examples: Sequence[Example], active: DefendedModel, meter: Meter) -> list[bool]:
    """Whether each example's first candidate is the best one."""
    right: list[bool] = []
    for begin in range(0, len(examples), CHUNK):
        laid = active.target.batch(examples[begin : begin + CHUNK])
        output = meter.run(
            lambda laid=laid: forward(active.target, laid, active.edits(laid)),  # type: ignore[misc]
            rows=laid.ids_RQ.shape[0],
            tokens=laid.ids_RQ.shape[1],
            layers=active.target.depth(),
        )
        right += (output.scores_EC.argmax(1) == 0).tolist()
    return right


@torch.no_grad()
def _neutral(active: DefendedModel, meter: Meter) -> tuple[float | None, float | None]:
    """Mean KL(clean || defended) and cross-entropy increase, nats per predicted token."""
    target = active.target
    texts = [target.encode(text) for text in target.neutral]
    kl = ce = tokens = 0.0
    for begin in range(0, len(texts), CHUNK):
        chunk = texts[begin : begin + CHUNK]
        laid = target.batch([Example("", ids, ((0,),)) for ids in chunk])
        clean = _logprobs(DefendedModel(target, None), laid, meter)
        defended = _logprobs(active, laid, meter)
        known_NQ = laid.mask_RQ[:, 1:]
        next_NQ1 = laid.ids_RQ[:, 1:, None]
        gap = clean.gather(2, next_NQ1) - defended.gather(2, next_NQ1)
        kl += float((clean.exp() * (clean - defended)).sum(2)[known_NQ].sum())
        ce += float(gap[:, :, 0][known_NQ].sum())
        tokens += float(known_NQ.sum())
    return (kl / tokens, ce / tokens) if tokens else (None, None)


def _logprobs(active: DefendedModel, laid: Batch, meter: Meter) -> Tensor:
    """Next-token log-probabilities [R, Q - 1, V]."""
    target = active.target

    def work() -> Tensor:
        hidden_RQD = final_states(target, laid, active.edits(laid))
        return target.logits(hidden_RQD[:, :-1]).log_softmax(-1)

    R, Q = laid.ids_RQ.shape
    return meter.run(work, rows=R, tokens=Q, layers=target.depth(), logits="all")
