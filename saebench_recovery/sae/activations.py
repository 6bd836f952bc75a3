"""From pre-activations to activations: latent by latent, or in competition."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

Chosen = Tensor | slice  # which latents: indices [S] in main memory, or a run of them


@dataclass(frozen=True, eq=False)
class Threshold:
    """The element-wise activation of standard, jumprelu and gated SAEs."""

    threshold_M: Tensor
    gain_M: Tensor
    offset_M: Tensor

    def __call__(self, p_M: Tensor) -> Tensor:
        return (p_M > self.threshold_M) * torch.relu(p_M * self.gain_M + self.offset_M)

    def of(self, chosen: Chosen) -> Threshold:
        return Threshold(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class TopK:
    """The competing activation of topk and abstopk SAEs: a latent depends on all others."""

    k: int
    signed: bool

    def __call__(self, p_M: Tensor) -> Tensor:
        winners = (p_M.abs() if self.signed else p_M).topk(self.k, dim=-1).indices
        values = p_M.gather(-1, winners)
        kept = values if self.signed else torch.relu(values)
        return torch.zeros_like(p_M).scatter(-1, winners, kept)
