"""Texts that the model may be writing again, to be confirmed in one pass.

Greedy writing is determined: a text is written again just where each of its tokens is the most
likely one behind those before it (speculative decoding, arXiv 2211.17192, with what was written
before in the place of a small model). A search is told the same few texts over and over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.model.beginnings import Beginnings
from saebench_recovery.model.examples import Example

KEPT = 4  # different texts of each prompt
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Drafts:
    """What was written last behind each prompt, the latest first, always up to as many tokens.

    With them is kept what the model has read of the prompts themselves.
    """

    beginnings: Beginnings = field(default_factory=Beginnings)
    _kept: dict[Ids, tuple[Ids, ...]] = field(default_factory=dict)

    def beginning(self, examples: Sequence[Example], first_R: Tensor) -> Tensor:
        """The latest text [R, T] of each prompt that begins with a token; -1 behind and for none.

        T is 0 where no prompt has one.
        """
        texts = [
            next((ids for ids in self._kept.get(e.prompt, ()) if ids[0] == first), ())
            for e, first in zip(examples, first_R.tolist(), strict=True)
        ]
        padded = pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in texts], True, -1)
        return padded.to(first_R.device)

    def keep(self, examples: Sequence[Example], texts: Sequence[Ids]) -> None:
        for example, ids in zip(examples, texts, strict=True):
            others = (kept for kept in self._kept.get(example.prompt, ()) if kept != ids)
            self._kept[example.prompt] = (ids, *others)[:KEPT]
