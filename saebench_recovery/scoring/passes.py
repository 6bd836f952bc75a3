"""Whole forward passes from the tokens, with hooks: the reference that everything is scored by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output, ResidualDelta
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.forward import forward
from saebench_recovery.model.generation import written
from saebench_recovery.model.roles import Judge

CHUNK = 64


@torch.no_grad()
def whole_pass(
    active: DefendedModel,
    task: Judge,
    batch: Batch,
    delta: ResidualDelta | None = None,
    trace: Trace | None = None,
    *,
    watch: tuple[Site, ...] = (),
    distribution: bool = True,
) -> Output:
    """One pass from the tokens, with the texts of a task that generates.

    By default also with the next-token distribution at the readout.
    """
    edits = active.edits(batch, delta, trace, watch)
    output = forward(active.target, batch, edits, pool=task.pool, distribution=distribution)
    if task.new_tokens:
        texts = written(active, batch.examples, task.new_tokens, delta)
        output = replace(output, texts=texts)
    return output


def outputs(
    examples: Sequence[Example], active: DefendedModel, task: Judge, *, scored: bool = True
) -> Iterator[Output]:
    """Candidates' scores of a list of examples, a chunk at a time, and texts where there are.

    Not `scored`, a task that generates has the texts alone.
    """
    for begin in range(0, len(examples), CHUNK):
        batch = active.target.batch(examples[begin : begin + CHUNK])
        if scored or not task.new_tokens:
            yield whole_pass(active, task, batch, distribution=False)
            continue
        scores_E0 = torch.empty(len(batch.examples), 0, device=batch.ids_RQ.device)
        texts = written(active, batch.examples, task.new_tokens)
        yield Output(batch.examples, scores_E0, texts=texts)


@torch.no_grad()
def perplexity(active: DefendedModel, output: Output) -> Tensor:
    """Of each text [E], given its prompt, by an undefended model; NaN below two tokens."""
    assert output.texts is not None
    perplexity_E = torch.full((len(output.texts),), torch.nan, dtype=torch.double)
    encoded = [
        tuple(active.target.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in output.texts
    ]
    long = [e for e, ids in enumerate(encoded) if len(ids) > 1]
    if long:
        answered = [output.examples[e].with_candidates(encoded[e]) for e in long]
        batch = active.target.batch(answered)
        scores_EC = forward(active.target, batch, active.edits(batch)).scores_EC
        perplexity_E[long] = (-scores_EC[:, 0].cpu().double()).exp()
    return perplexity_E
