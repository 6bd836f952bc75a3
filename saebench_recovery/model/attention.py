"""One attention for every pass, and a prefix of keys and values that is read, never copied.

Registered with transformers under its own name, so that masks, rotary embeddings, windows and
soft caps stay the model's own. It uses plain matrix products: exact on every device, counted by
PyTorch's FLOP counter (fused CPU attention is not) and differentiable twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface

from saebench_recovery.base.errors import UserError
from saebench_recovery.model.meter import note_twofold
from saebench_recovery.model.packing import attention_mask as packed_or_whole

NAME = "saebench_prefix"


class FrozenLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [E, H, P, d] of the prefix at one layer; `update` stores nothing.

    Appending to them for each pass would copy the whole prefix each step, and a growing cache
    would give every later step a longer past.
    """

    def __init__(
        self, length: int, keys: Tensor | None, values: Tensor | None, *, recording: bool = False
    ) -> None:
        super().__init__()
        self.length, self.keys, self.values = length, keys, values
        self.recording = recording
        self.recorded: tuple[Tensor, Tensor] | None = None
        self.is_initialized = True

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.recording:
            self.recorded = key.detach(), value.detach()
        return key, value

    def get_seq_length(self) -> int:
        return self.length


class FrozenPrefix(Cache):  # type: ignore[misc]
    """The keys and values before the first perturbed position, per layer.

    `keys_values` holds [E, H, P, d] pairs, or None for a layer that will not run. A pass over
    E * n rows, grouped by example, shares them: each example's prefix is read once for n rows.
    """

    def __init__(
        self,
        length: int,
        keys_values: list[tuple[Tensor, Tensor] | None],
        *,
        recording: bool = False,
    ) -> None:
        self.length = length
        self.keys_values = [kv and (_laid_out(kv[0]), _laid_out(kv[1])) for kv in keys_values]
        pairs = [kv or (None, None) for kv in self.keys_values]
        super().__init__(layers=[FrozenLayer(length, *kv, recording=recording) for kv in pairs])

    @classmethod
    def taken(cls, length: int, cache: Cache) -> FrozenPrefix:
        """What a cache holds, layer by layer: it is empty afterwards, and none is there twice."""
        taken: list[tuple[Tensor, Tensor] | None] = []
        while cache.layers:
            layer = cache.layers.pop(0)
            ran = layer.is_initialized
            taken.append((_laid_out(layer.keys), _laid_out(layer.values)) if ran else None)
        return cls(length, taken)

    def recording(self) -> FrozenPrefix:
        """The same prefix, which keeps the keys and values of the next pass over it."""
        return FrozenPrefix(self.length, self.keys_values, recording=True)

    def extended(self, recorded: FrozenPrefix, count: int, examples: int) -> FrozenPrefix:
        """A prefix for each example of a pass: its own, and `count` tokens that it then ran."""
        longer: list[tuple[Tensor, Tensor] | None] = []
        for past, layer in zip(self.keys_values, recorded.layers, strict=True):
            if layer.recorded is None:  # a layer that did not run
                longer.append(None)
                continue
            own = [t[:: t.shape[0] // examples, :, :count] for t in layer.recorded]
            if past is not None and self.length:
                share = own[0].shape[0] // past[0].shape[0]
                pairs = zip(past, own, strict=True)
                own = [torch.cat([p.repeat_interleave(share, 0), o], 2) for p, o in pairs]
            longer.append((own[0], own[1]))
        return FrozenPrefix(self.length + count, longer)

    def gather(self, index: Tensor) -> FrozenPrefix:
        """The prefixes of some examples."""

        def rows(kept: Tensor) -> Tensor:  # which are where their block is
            return kept.mT[index.to(kept.device)].mT

        chosen = [kv and (rows(kv[0]), rows(kv[1])) for kv in self.keys_values]
        return FrozenPrefix(self.length, chosen)


def _laid_out(kept_EHPd: Tensor) -> Tensor:
    """The same numbers, those of all positions side by side in memory.

    So products with few rows read them as they lie: 30 % less time over all four of a step.
    """
    return kept_EHPd.mT.contiguous().mT


_active: ContextVar[FrozenPrefix | None] = ContextVar("prefix", default=None)
_noted: ContextVar[list[int] | None] = ContextVar("layers", default=None)


@contextmanager
def reading(prefix: FrozenPrefix | None) -> Iterator[None]:
    """Let the attention of every layer see `prefix` before the pass's own keys and values."""
    token = _active.set(prefix)
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def layers_noted() -> Iterator[list[int]]:
    """The layers whose attention is computed here while the context is open, in their order."""
    noted: list[int] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention over prefix and own tokens; query [R, H, Q, d] -> [R, Q, H, d]."""
    if kwargs.get("s_aux") is not None:
        raise UserError("attention sinks are not supported; use a model without them")
    if (noted := _noted.get()) is not None:
        noted.append(cast(int, module.layer_idx))
    R, H, Q, d = query.shape
    groups, length = H // key.shape[1], key.shape[-2]
    past = _past(module)
    shared = 1 if past is None else R // past[0].shape[0]
    query = (query * (d**-0.5 if scaling is None else scaling)).reshape(R, -1, groups * Q, d)
    scores = _per_example(_own_scores(query, key), shared)
    if past is not None:
        before = _per_example(query, shared) @ past[0].transpose(-1, -2)
        scores = torch.cat([before, scores], -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        if groups > 1:
            attention_mask = attention_mask.repeat(1, 1, groups, 1)
        scores += _per_example(attention_mask, shared)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    note_twofold(2 * 2.0 * R * H * Q * d * length, counted=length > 1)
    # One split: the backward pass of two slices would fill and add two whole tensors.
    before, own = weights.split_with_sizes([weights.shape[-1] - length, length], -1)
    mixed = _own_mixed(_per_row(own, shared, groups * Q), value)
    if past is not None:
        mixed = mixed + _per_row(before @ past[1], shared, groups * Q)
    # Values may be narrower than queries, and some models take a view of what comes back.
    return mixed.reshape(R, H, Q, -1).transpose(1, 2).contiguous(), None


def _past(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The active prefix's keys and values at a layer, if there are any."""
    prefix = _active.get()
    if prefix is None or prefix.length == 0:
        return None
    return prefix.keys_values[cast(int, module.layer_idx)]


def _own_scores(query_RHQd: Tensor, key_RHkd: Tensor) -> Tensor:
    """Scores [R, H, Q, k]; with one key a row, a library's products would be one number each."""
    if key_RHkd.shape[2] == 1:
        return (query_RHQd * key_RHkd).sum(-1, keepdim=True)
    return query_RHQd @ key_RHkd.transpose(-1, -2)


def _own_mixed(weights_RHQk: Tensor, value_RHkd: Tensor) -> Tensor:
    if value_RHkd.shape[2] == 1:
        return weights_RHQk * value_RHkd
    return weights_RHQk @ value_RHkd


def _per_example(x_RHQd: Tensor, shared: int) -> Tensor:
    """[E * n, H, Q, d] -> [E, H, n * Q, d]: the rows of one example side by side."""
    if shared == 1:
        return x_RHQd
    H, Q, d = x_RHQd.shape[1:]
    return x_RHQd.view(-1, shared, H, Q, d).transpose(1, 2).reshape(-1, H, shared * Q, d)


def _per_row(x: Tensor, shared: int, Q: int) -> Tensor:
    """The inverse of `_per_example`."""
    if shared == 1:
        return x
    E, H, _, d = x.shape
    return x.view(E, H, shared, Q, d).transpose(1, 2).reshape(E * shared, H, Q, d)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, packed_or_whole)
