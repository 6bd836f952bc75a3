"""Keys and values of what prompts begin with, computed once.

Prompts of one template begin alike, and a search has the same few prompts go on again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from saebench_recovery.model.cached_pass import left_padded, ran
from saebench_recovery.model.defended import DefendedModel

LEAST = 8  # tokens that are worth a pass of their own

Ids = tuple[int, ...]
KeysValues = dict[int, tuple[Tensor, Tensor]]
"""Of each block that ran, for one prompt: [H, T, d]."""


@dataclass
class Beginnings:
    """What one defended model has read so far."""

    _active: DefendedModel | None = None
    _read: dict[Ids, KeysValues] = field(default_factory=dict)

    def cache(self, active: DefendedModel, rows: Sequence[Ids]) -> tuple[DynamicCache, Tensor]:
        """A cache that holds these beginnings, padded on the left, and its mask [R, T]."""
        if self._active is not active:
            self._active, self._read = active, {}
        missing = [row for row in dict.fromkeys(rows) if row and row not in self._read]
        for row, found in _read(active, missing):
            self._read[row] = found
        length = max(map(len, rows), default=0)
        mask_RT = torch.arange(-length, 0) >= -torch.tensor([[len(row)] for row in rows])
        read = [self._read[row] if row else {} for row in rows]
        return _joined(read, length), mask_RT.to(active.target.device)


def _read(active: DefendedModel, rows: Sequence[Ids]) -> Iterator[tuple[Ids, KeysValues]]:
    """Run beginnings of prompts: what all have in common once, and then those of one length.

    So there is never padding between two real tokens, which a sliding window would count.
    """
    shared = _shared(rows)
    if len(rows) < 2 or len(shared) < LEAST:
        yield from _ran(active, rows, (), {}) if rows else ()
        return
    ((_, common),) = _ran(active, [shared], (), {})
    for length in sorted({len(row) for row in rows}):
        yield from _ran(active, [row for row in rows if len(row) == length], shared, common)


def _ran(
    active: DefendedModel, rows: Sequence[Ids], shared: Ids, common: KeysValues
) -> Iterator[tuple[Ids, KeysValues]]:
    cache = _joined([common] * len(rows), len(shared))
    rest = [row[len(shared) :] for row in rows]
    step, mask_RQ = left_padded(rest, [len(row) for row in rows], active.target.device)
    before_RT = mask_RQ.new_ones(len(rows), len(shared))
    ran(active, step, torch.cat([before_RT, mask_RQ], 1), cache)
    layers = [(i, la.keys, la.values) for i, la in enumerate(cache.layers) if la.is_initialized]
    for r, row in enumerate(rows):
        yield row, {i: (k[r, :, -len(row) :], v[r, :, -len(row) :]) for i, k, v in layers}


def _shared(rows: Sequence[Ids]) -> Ids:
    """What all begin with, and each goes on behind."""
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    common = tuple(tokens[0] for tokens in alike)
    return common[: min((len(row) - 1 for row in rows), default=0)]


def _joined(read: Sequence[KeysValues], length: int) -> DynamicCache:
    """A cache of rows padded on the left; without a config it keeps whole windowed layers too."""
    cache = DynamicCache()
    for layer in sorted({layer for each in read for layer in each}):
        like = next(each[layer] for each in read if each)
        both = [
            torch.stack([_padded(each.get(layer, like)[part], length, each) for each in read])
            for part in (0, 1)
        ]
        cache.update(*both, layer)
    return cache


def _padded(values_HTd: Tensor, length: int, read: KeysValues) -> Tensor:
    values_HTd = values_HTd if read else values_HTd[:, :0]
    return pad(values_HTd, (0, 0, length - values_HTd.shape[1], 0))
