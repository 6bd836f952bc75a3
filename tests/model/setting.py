"""Prompts, perturbations and a defense on which the tail is held to the whole model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, ResidualDelta
from saebench_recovery.targets.target import Target
from tests.tiny import (
    BOS,
    VOCABULARY,
    WIDTH,
    WINDOW,
)

TOLERANCE = 1e-5  # relative to the largest entry
LENGTHS = (7, 15, 11)  # two of them longer than the sliding window
assert max(LENGTHS) > WINDOW + 3
# Perturbed positions per example, -1 where it has fewer.
POSITIONS = {
    "readout": [[6], [14], [10]],
    "several": [[2, 6, -1], [3, 9, 14], [10, -1, -1]],
}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def prompts(*, long_answers: bool, seed: int = 0) -> list[Example]:
    """Prompts of different lengths with two or three answers of one or several tokens."""
    drawn = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=drawn).tolist())

    def answers(i: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tokens(1 + (i + c) % 3 if long_answers else 1) for c in range(2 + i % 2))

    return [Example(str(i), (BOS, *tokens(n - 1)), answers(i)) for i, n in enumerate(LENGTHS)]


def random_delta(site: Site, positions: Sequence[Sequence[int]], seed: int = 0) -> ResidualDelta:
    positions_EP = torch.tensor(positions)
    drawn = torch.Generator().manual_seed(seed)
    values_EPD = torch.randn(*positions_EP.shape, WIDTH, generator=drawn)
    return ResidualDelta({site: values_EPD * (positions_EP >= 0)[..., None]}, positions_EP)


def clamp(target: Target, sites: Sequence[str]) -> Clamp:
    """Clamps twelve latents at each of several sites."""
    defense = Clamp()
    features = torch.arange(0, 96, 8)
    defense.latents = {
        Site.parse(s): target.dictionary(Site.parse(s)).defended(features) for s in sites
    }
    return defense
