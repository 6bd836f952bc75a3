"""What an attack changes, as plain data: rows of the residual, the prompt, or the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Example
from saebench_recovery.model.weights import WeightChange

SHARED = "shared/"  # begins the name of a tensor of all examples together


class Perturbation(ABC):
    """What an attack returns, one per example: replayable in a fresh process from its tensors."""

    kind: ClassVar[str]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Named tensors, an entry per example but in `SHARED` ones, for a safetensors file."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`."""

    @abstractmethod
    def rows(self, index: Tensor) -> Self:
        """Those of some examples."""

    def norm_E(self) -> Tensor | None:
        """Length [E] of each, or None where there is nothing to measure."""
        return None

    def present_E(self) -> Tensor | None:
        """Bool [E]: where there is a perturbation at all; None where there always is."""
        return None

    @abstractmethod
    def applied(
        self, examples: Sequence[Example]
    ) -> tuple[Sequence[Example], ResidualDelta | None]:
        """What is run in place of the examples: their prompts as perturbed, and a delta on them."""

    def inserted_at_E(self) -> Tensor | None:
        """The prompt's token [E] before which tokens are inserted; None if none are."""
        return None

    def weights_of(self) -> Sequence[WeightChange] | None:
        """What becomes of the model's weights for each example; None where they always stay.

        Examples of equal changes are run together.
        """
        return None

    def weights(self) -> WeightChange | None:
        """The same, where it is one change for all examples."""
        each = self.weights_of()
        if each is None:
            return None
        (same,) = set(each)
        return same


@dataclass(frozen=True)
class ResidualDelta(Perturbation):
    """Rows added to the residual stream at absolute token positions.

    `values[site]` is float32 [E, P, D]; `positions_EP` holds token indices into each example's
    own prompt (BOS is 0), -1 where an example perturbs fewer positions.
    """

    kind: ClassVar[str] = "residual"

    values: Mapping[Site, Tensor]
    positions_EP: Tensor

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a delta perturbs at least one site")
        for site, values_EPD in self.values.items():
            if values_EPD.dtype != torch.float32:
                raise TypeError(f"a delta is float32, not {values_EPD.dtype} (site {site})")
            if values_EPD.shape[:2] != self.positions_EP.shape:
                raise ValueError(
                    f"delta {tuple(values_EPD.shape)} at {site} does not fit positions "
                    f"{tuple(self.positions_EP.shape)}"
                )

    def norm_E(self) -> Tensor:
        """Frobenius norm per example, over sites and positions."""
        squares = [values.flatten(1).square().sum(1) for values in self.values.values()]
        return torch.stack(squares).sum(0).sqrt()

    def rows(self, index: Tensor) -> Self:
        values = {site: values[index] for site, values in self.values.items()}
        return replace(self, values=values, positions_EP=self.positions_EP[index])

    def detached(self) -> Self:
        """The same numbers, without what they were computed from."""
        return replace(self, values={site: v.detach() for site, v in self.values.items()})

    def interleaved(self, other: Self) -> Self:
        """The rows of both in turn: one of these, one of those, and so on."""
        values = {
            site: torch.stack([values, other.values[site]], 1).flatten(0, 1)
            for site, values in self.values.items()
        }
        positions_EP = self.positions_EP.repeat_interleave(2, 0)
        return replace(self, values=values, positions_EP=positions_EP)

    def applied(
        self, examples: Sequence[Example]
    ) -> tuple[Sequence[Example], ResidualDelta | None]:
        return examples, self

    def tensors(self) -> dict[str, Tensor]:
        named = {f"delta/{site}": v.detach().cpu() for site, v in self.values.items()}
        return {**named, "positions": self.positions_EP.cpu()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        values = {
            Site.parse(name.removeprefix("delta/")): tensor
            for name, tensor in tensors.items()
            if name.startswith("delta/")
        }
        return cls(values, tensors["positions"])
