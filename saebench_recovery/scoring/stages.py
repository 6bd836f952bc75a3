"""Flips and retain examples under the stages of an attack on weights, the defense active."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from safetensors.torch import save

from saebench_recovery.perturbations.weights import ChangedWeights
from saebench_recovery.schema import Stage
from saebench_recovery.scoring.controls import Ladder
from saebench_recovery.scoring.reach import reaches
from saebench_recovery.scoring.setting import Flip, Setting


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
        kept = _retained(setting, change)
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


def _retained(setting: Setting, change: ChangedWeights) -> float | None:
    """The share of retain examples that are right under a change which serves all prompts."""
    tensors = change.rows(torch.tensor([0])).tensors()
    content = hashlib.sha256(save({name: t.contiguous() for name, t in tensors.items()}))
    found, key = setting.retained, content.hexdigest()
    if key not in found:
        found[key] = setting.retain.share_kept(setting.active.with_weights(change.weights()))
    return found[key]
