"""What a defense's detector says of perturbed prompts, and how often it rings for nothing.

It watches the content tokens of an example's first row: the prompt and, where answers are
teacher-forced, the behaviour's own. Text that a model generates is not watched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saebench_recovery.interfaces import Example, Perturbation, ResidualDelta
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.forward import content, forward
from saebench_recovery.schema import Rate
from saebench_recovery.scoring import statistics
from saebench_recovery.scoring.passes import CHUNK


def rings(active: DefendedModel, batch: Batch, trace: Trace) -> Tensor | None:
    """Whether the detector rings on a traced pass, bool [E]; None for a defense without one.

    Under `reclamp` it sees what enters the defense, under `post` what leaves the site.
    """
    defense = active.defense
    if defense is None or not _has_detector(active):
        return None
    entering = active.threat_model == "reclamp"
    C = batch.rows_per_example
    watched_EQ = content(active.target, batch)[::C]
    seen = trace.before if entering else trace.after
    ringing = [defense.alarm(s, seen[s][::C], entering=entering) > 0 for s in defense.latents]
    return (torch.stack(ringing).any(0) & watched_EQ).any(1)


@torch.no_grad()
def false_alarms(active: DefendedModel, examples: Sequence[Example]) -> Rate | None:
    """Share of undisturbed examples on which the detector rings; None for a defense without one."""
    if not _has_detector(active):
        return None
    alarmed: list[bool] = []
    for begin in range(0, len(examples), CHUNK):
        alarmed += _rung(active, examples[begin : begin + CHUNK]).tolist()
    return statistics.rate(alarmed, [e.cluster or e.id for e in examples])


@torch.no_grad()
def alarms(
    active: DefendedModel, examples: Sequence[Example], perturbation: Perturbation
) -> Tensor | None:
    """Whether the detector rings on perturbed examples, bool [E]; None for a defense without one.

    What a replay says of them, by a pass that ends at the last defended site.
    """
    if not _has_detector(active):
        return None
    perturbed, delta = perturbation.applied(examples)
    return _rung(active.with_weights(perturbation.weights()), perturbed, delta)


def _has_detector(active: DefendedModel) -> bool:
    return active.defense is not None and active.defense.false_alarms is not None


def _rung(
    active: DefendedModel, examples: Sequence[Example], delta: ResidualDelta | None = None
) -> Tensor:
    assert active.defense is not None
    batch, trace = active.target.batch(examples), Trace()
    edits = active.edits(batch, delta, trace)
    forward(active.target, batch, edits, pool=max(active.defense.latents))
    alarmed_E = rings(active, batch, trace)
    assert alarmed_E is not None
    return alarmed_E
