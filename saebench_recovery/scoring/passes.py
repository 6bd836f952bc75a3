"""Whole forward passes from the tokens, with hooks: the reference that everything is scored by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output, ResidualDelta, Task
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.forward import forward
from saebench_recovery.model.generation import written
from saebench_recovery.model.meter import Meter

CHUNK = 64


@torch.no_grad()
def whole_pass(
    active: DefendedModel,
    task: Task,
    laid: Batch,
    meter: Meter,
    delta: ResidualDelta | None = None,
    trace: Trace | None = None,
    *,
    watch: tuple[Site, ...] = (),
    distribution: bool = True,
) -> Output:
    """One pass from the tokens, with the texts of a task that generates.

    By default also with the next-token distribution at the readout.
    """

    def work() -> Output:
        edits = active.edits(laid, delta, trace, watch)
        return forward(active.target, laid, edits, pool=task.pool, distribution=distribution)

    R, Q = laid.ids_RQ.shape
    logits = "distribution" if distribution else "candidates"
    layers = active.target.depth(task.pool)
    output = meter.run(work, rows=R, tokens=Q, layers=layers, logits=logits)
    if task.new_tokens:
        texts = written(active, laid.examples, task.new_tokens, meter, delta)
        output = replace(output, texts=texts)
    return output


def outputs(
    examples: Sequence[Example], active: DefendedModel, task: Task, meter: Meter
) -> Iterator[Output]:
    """Candidates' scores of a list of examples, a chunk at a time."""
    for begin in range(0, len(examples), CHUNK):
        laid = active.target.batch(examples[begin : begin + CHUNK])
        yield whole_pass(active, task, laid, meter, distribution=False)


@torch.no_grad()
def perplexity(active: DefendedModel, output: Output, meter: Meter) -> Tensor:
    """Of each text [E], given its prompt, by an undefended model; NaN below two tokens."""
    assert output.texts is not None
    found_E = torch.full((len(output.texts),), torch.nan, dtype=torch.double)
    encoded = [
        tuple(active.target.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in output.texts
    ]
    long = [e for e, ids in enumerate(encoded) if len(ids) > 1]
    if long:
        said = [output.examples[e].with_candidates(encoded[e]) for e in long]
        laid = active.target.batch(said)
        R, Q = laid.ids_RQ.shape
        scores_EC = meter.run(
            lambda: forward(active.target, laid, active.edits(laid)).scores_EC,
            rows=R,
            tokens=Q,
            layers=active.target.depth(),
        )
        found_E[long] = (-scores_EC[:, 0].double()).exp().cpu()
    return found_E
