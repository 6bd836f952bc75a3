"""Flips and retain examples under the stages of an attack on weights, the defense active."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saebench_recovery.perturbations.weights import ChangedWeights
from saebench_recovery.schema import Stage
from saebench_recovery.scoring.controls import Ladder
from saebench_recovery.scoring.reach import reaches
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.side_effects import retained


@torch.no_grad()
def stages(setting: Setting, flips: Sequence[Flip], ladder: Ladder) -> list[tuple[Stage, ...]]:
    """The stages of each flip's headline; none of a perturbation that leaves the weights.

    Retained accuracy is that of the change towards the right answers.
    """
    headline, wrong = ladder.headline(wrong=False), ladder.headline(wrong=True)
    if not isinstance(headline, ChangedWeights) or not isinstance(wrong, ChangedWeights):
        return [()] * len(flips)
    right_rows, wrong_rows = ladder.alone(wrong=False), ladder.alone(wrong=True)
    already_E = wrong_rows.behaviour(wrong_rows.nothing())
    within_reach = [reaches(setting, flip.example, flip.wrong) for flip in flips]
    found: list[list[Stage]] = [[] for _ in flips]
    for (spent, change), (_, other) in zip(headline.stages(), wrong.stages(), strict=True):
        shows = right_rows.behaviour(change).tolist()
        injects = (wrong_rows.behaviour(other) & ~already_E).tolist()
        kept = retained(setting, setting.active.with_weights(change.weights()))
        for e, of_flip in enumerate(found):
            of_flip.append(
                Stage(
                    steps=spent.steps,
                    tokens=spent.tokens,
                    flops=spent.flops,
                    shows=shows[e],
                    injects=injects[e] if within_reach[e] else None,
                    retained=kept,
                )
            )
    return [tuple(of_flip) for of_flip in found]
