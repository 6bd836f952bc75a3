"""A part of the vocabulary that stands for all of it, where passes only have to be put in order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SHARE = 16  # one token in so many; half of those are the likeliest, half are drawn


@dataclass(frozen=True, eq=False)
class VocabularySample:
    """Tokens [K], and the logarithm [K] of how many each stands for in a sum over the vocabulary.

    The likeliest stand for themselves: they are most of the sum where a model is sure. Random ones
    stand for all others alike, as importance sampling has it.
    """

    ids_K: Tensor
    log_count_K: Tensor

    @classmethod
    def of(cls, likely_V: Tensor) -> VocabularySample:
        """Of a vocabulary by how likely each token is; the same each time."""
        size = max(1, len(likely_V) // (2 * SHARE))
        order_V = likely_V.argsort(descending=True)
        others = order_V[size:]
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:size]
        log_count_K = torch.zeros(2 * size, device=others.device)
        log_count_K[size:] = math.log(len(others) / size)
        return cls(torch.cat([order_V[:size], others[drawn.to(others.device)]]), log_count_K)


@dataclass(frozen=True, eq=False)
class Samples:
    """The sample of each example [E] of a batch, by its place among those that there are.

    An example's own answers alone say what is in its sample, whatever else is in the batch.
    """

    samples: tuple[VocabularySample, ...]
    place_E: Tensor

    def at(self, place_E: Tensor) -> Samples:
        """The same for a batch of examples that have these."""
        return Samples(self.samples, place_E)
