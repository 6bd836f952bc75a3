"""Real residuals for the checks of a defense: of a few evaluation prompts, at its sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.forward import content, forward
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.scoring.setting import Setting

Residuals = dict[Site, list[Tensor]]
"""Per site, the residual [T, D] of each prompt's tokens behind BOS, float32."""


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """So many examples, evenly over all of them."""
    step = max(1, len(examples) // count)
    return list(examples[::step][:count])


@torch.no_grad()
def residuals(
    active: DefendedModel, examples: Sequence[Example], sites: Sequence[Site]
) -> tuple[Residuals, Residuals]:
    """What enters and what leaves a defense (the same, without one); later layers are not run."""
    prompts = [example.with_candidates((0,)) for example in examples]  # one row each
    batch, trace = active.target.batch(prompts), Trace()
    edits = active.edits(batch, trace=trace, watch=tuple(sites))
    forward(active.target, batch, edits, pool=max(sites))
    return _around(trace, batch, active, sites)


def judged(
    setting: Setting, examples: Sequence[Example]
) -> tuple[Output, tuple[Residuals, Residuals]]:
    """A pass of the defended model that a task judges, and what enters and leaves the defense."""
    batch, trace = setting.target.batch(examples), Trace()
    output = whole_pass(setting.active, setting.task, batch, trace=trace, distribution=False)
    return output, _around(trace, batch, setting.active, list(setting.defense.latents))


def _around(
    trace: Trace, batch: Batch, active: DefendedModel, sites: Sequence[Site]
) -> tuple[Residuals, Residuals]:
    """The prompts' tokens, of each example's first row."""
    C, column_Q = batch.rows_per_example, torch.arange(batch.ids_RQ.shape[1])
    in_prompt_EQ = column_Q.to(batch.ids_RQ.device) <= batch.readout_E[:, None]
    keep_EQ = content(active.target, batch)[::C] & in_prompt_EQ

    def split(seen: dict[Site, Tensor]) -> Residuals:
        return {
            site: [row[keep] for row, keep in zip(seen[site][::C], keep_EQ, strict=True)]
            for site in sites
        }

    return split(trace.before), split(trace.after)
