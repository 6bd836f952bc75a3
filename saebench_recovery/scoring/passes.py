"""Whole forward passes from the tokens, with hooks: the reference that everything is scored by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from saebench_recovery.interfaces import Example, Output, ResidualDelta, Task
from saebench_recovery.recovery.active import ActiveDefense, Trace
from saebench_recovery.recovery.generation import written
from saebench_recovery.recovery.meter import Meter
from saebench_recovery.sites import Site
from saebench_recovery.target.batch import Batch, batch
from saebench_recovery.target.forward import forward

CHUNK = 64


@torch.no_grad()
def whole_pass(
    active: ActiveDefense,
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
    examples: Sequence[Example], active: ActiveDefense, task: Task, meter: Meter
) -> Iterator[Output]:
    """Candidates' scores of a list of examples, a chunk at a time."""
    for begin in range(0, len(examples), CHUNK):
        laid = batch(examples[begin : begin + CHUNK], device=active.target.device)
        yield whole_pass(active, task, laid, meter, distribution=False)
