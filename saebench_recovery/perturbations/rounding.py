"""The space of rounded weights: fewer bits for each, by a rule that leaves nothing to search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor

from saebench_recovery.base.hashing import hash_text
from saebench_recovery.model.perturbation import Perturbation
from saebench_recovery.model.weights import WeightChange
from saebench_recovery.perturbations.space import Draw, checked_shape
from saebench_recovery.perturbations.weights import ChangedWeights, Spent, WeightSpace

BITS = (8, 4)
GROUP = 64  # neighbours in a row that share a scale at 4 bits; at 8 bits a whole row does


@dataclass(frozen=True)
class Rounded(WeightChange):
    """Every weight to the nearest of 2^bits - 1 evenly spaced values, symmetric around zero.

    The largest absolute value of a row, or of `GROUP` neighbours, is representable. 0 bits leave
    the weights as they are. With a seed of 0 or more the rounding errors get random signs: noise
    as large as the rounding's.
    """

    bits: int
    seed: int

    def of(self, name: str, weight: Tensor) -> Tensor | None:
        if not self.bits:
            return None
        exact = weight.detach().float()
        error = rounded(exact, self.bits) - exact
        if self.seed >= 0:
            number = int(hash_text(f"{self.seed}/{name}")[:15], 16)
            coins = torch.randint(2, weight.shape, generator=Generator().manual_seed(number))
            error = error * (2 * coins - 1).to(error)
        changed: Tensor = (exact + error).to(weight.dtype)
        return changed


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A matrix with so many bits for each weight."""
    columns = weight.shape[1]
    size = GROUP if bits == 4 and columns % GROUP == 0 else columns
    groups = weight.reshape(-1, size)
    step = groups.abs().amax(1, keepdim=True).clamp_min(1e-30) / (2 ** (bits - 1) - 1)
    close: Tensor = (groups / step).round() * step
    return close.reshape(weight.shape)


@dataclass(frozen=True)
class RoundedWeights(ChangedWeights):
    """Bits [E] of each weight, int64, and the seed [E] of random signs, -1 for the rounding."""

    kind: ClassVar[str] = "rounded"

    bits_E: Tensor
    seed_E: Tensor

    def present_E(self) -> Tensor:
        return self.bits_E > 0

    def rows(self, index: Tensor) -> Self:
        own = index.to(self.bits_E.device)
        return replace(self, bits_E=self.bits_E[own], seed_E=self.seed_E[own])

    def weights_of(self) -> Sequence[WeightChange]:
        pairs = zip(self.bits_E.tolist(), self.seed_E.tolist(), strict=True)
        return [Rounded(bits, seed) for bits, seed in pairs]

    def stages(self) -> Sequence[tuple[Spent, Self]]:
        return [(Spent(), self)]

    def tensors(self) -> dict[str, Tensor]:
        return {"bits": self.bits_E.cpu(), "seed": self.seed_E.cpu()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["bits"], tensors["seed"])


@dataclass(frozen=True)
class Rounding(WeightSpace):
    """Weights of 8 or 4 bits in place of the model's own."""

    kind: ClassVar[str] = "rounded"

    def to(self, bits: int) -> RoundedWeights:
        """Weights of so many bits for all rows; 0 leaves them."""
        every_N = torch.full((self.size,), bits)
        return RoundedWeights(every_N, torch.full_like(every_N, -1))

    def nothing(self) -> RoundedWeights:
        return self.to(0)

    def random(self, draw: Draw, budget_N: Tensor, like: Perturbation | None) -> RoundedWeights:
        """The same rounding errors with random signs."""
        given = self.to(min(BITS)) if like is None else like
        assert isinstance(given, RoundedWeights)
        seed = int(torch.randint(2**31, (), generator=draw.alike("")))
        return replace(given, seed_E=torch.full_like(given.bits_E, seed))

    def admit(self, perturbation: Perturbation, budget_N: Tensor) -> RoundedWeights:
        """Refuse other numbers of bits."""
        perturbation = checked_shape(perturbation, RoundedWeights)
        self.check_sides(perturbation.weights_of())
        others = set(perturbation.bits_E.tolist()) - {0, *BITS}
        if others:
            raise ValueError(f"weights of {min(others)} bits; there are {BITS}")
        return perturbation
