"""A detector is held to what it said: of perturbed prompts, and where false alarms were counted.

The two are asked in calls of their own, which a detector could tell apart: by the stack, by their
number, by whom it has met. So it is asked once more of both in one call, after each chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from saebench_recovery.model.meter import Meter, total_cost
from saebench_recovery.perturbations.evidence import unpack
from saebench_recovery.scoring.journal import Chunk
from saebench_recovery.scoring.monitor import attacked, says_otherwise
from saebench_recovery.scoring.setting import Flip, Setting

CHANGED = "defense-changed"


def rung_again(setting: Setting, flips: Sequence[Flip], chunk: Chunk) -> Chunk:
    """The chunk of these flips, with a flag on those of which the detector says otherwise.

    On all of them where it says otherwise of an undisturbed prompt. The package's own detectors
    are functions of the residual: nothing is asked where no code of others takes part.
    """
    if setting.false_alarms is None or not setting.watched:
        return chunk
    meter = Meter()
    with meter.counting():
        device = setting.target.device
        parts = {n: t.to(device) for n, t in chunk.tensors.items() if n.startswith("headline/")}
        headline = unpack(parts, chunk.metadata)["headline"]
        examples = [flip.example for flip in flips]
        rang = [bool(record.alarmed) for record in chunk.records]
        perturbed = attacked(setting.active, examples, headline, rang)
        otherwise = says_otherwise(setting.active, [*perturbed, *setting.false_alarms.some])
    of_all = any(otherwise[len(perturbed) :])
    records = [
        record.model_copy(update={"flags": (*record.flags, CHANGED)})
        if (changed or of_all) and CHANGED not in record.flags
        else record
        for record, changed in zip(chunk.records, otherwise, strict=False)
    ]
    return replace(chunk, records=records, scoring=total_cost([chunk.scoring, meter.cost()]))
