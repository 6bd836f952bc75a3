"""Suffixes, as plain data: tokens that stand in a prompt, or free embeddings in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.model.examples import Example
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta


@dataclass(frozen=True)
class TokenSuffix(Perturbation):
    """Tokens that stand in each prompt before its token `at_E`.

    `ids_EL` is int64, with -1 behind a shorter suffix; `texts` are what they say. It is the text
    that counts: tokenised inside the whole prompt, it gives exactly these ids.
    """

    ids_EL: Tensor
    at_E: Tensor
    texts: tuple[str, ...]

    def norm_E(self) -> None:
        return None

    def rows(self, index: Tensor) -> Self:
        texts = tuple(self.texts[i] for i in index.tolist())
        return replace(self, ids_EL=self.ids_EL[index], at_E=self.at_E[index], texts=texts)

    def applied(self, examples: Sequence[Example]) -> tuple[Sequence[Example], None]:
        parts = zip(examples, self.at_E.tolist(), self.ids_EL.tolist(), strict=True)
        return [e.with_inserted(at, [i for i in ids if i >= 0]) for e, at, ids in parts], None

    def tensors(self) -> dict[str, Tensor]:
        said = [
            torch.frombuffer(bytearray(t.encode() + b"\0"), dtype=torch.uint8) for t in self.texts
        ]
        return {
            "suffix/ids": self.ids_EL.cpu(),
            "suffix/at": self.at_E.cpu(),
            "suffix/utf8": pad_sequence(said, batch_first=True),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TokenSuffix:
        texts = [bytes(row).rstrip(b"\0").decode() for row in tensors["suffix/utf8"].tolist()]
        return cls(tensors["suffix/ids"], tensors["suffix/at"], tuple(texts))


@dataclass(frozen=True)
class SoftSuffix(ResidualDelta):
    """A suffix of free embeddings: one `token`, as often as there are positions, displaced.

    `positions_EP` are those of the suffix in the prompt that holds it, and the displacements
    `values` are added where the model's blocks begin (`blocks.0.hook_resid_pre`), behind whatever
    it does to embeddings.
    """

    token: int = 0

    def applied(self, examples: Sequence[Example]) -> tuple[Sequence[Example], ResidualDelta]:
        suffix = [self.token] * self.positions_EP.shape[1]
        starts = self.positions_EP[:, 0].tolist()
        return [e.with_inserted(at, suffix) for e, at in zip(examples, starts, strict=True)], self

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "token": torch.full((len(self.positions_EP),), self.token)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SoftSuffix:
        plain = ResidualDelta.from_tensors(tensors)
        return cls(plain.values, plain.positions_EP, int(tensors["token"][0]))
