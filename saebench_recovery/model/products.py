"""Linear maps by oneDNN, where PyTorch's own product leaves half of a CPU's width unused.

PyTorch has MKL make its float32 products, which on CPUs of other makers than its own takes 256-bit
instructions even where there are 512-bit ones; oneDNN, which comes with PyTorch too, goes by what
the CPU has. Both sum in float32 and agree within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula
from transformers.pytorch_utils import Conv1D

WORTHWHILE = 2**22  # multiplications: with fewer, choosing a kernel for a shape costs more

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
available = _onednn is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [..., I] through a linear map; PyTorch's own product wherever oneDNN's does not suit."""
    if not _suits(x, weight, bias):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, _Frozen.apply(x, weight, bias))  # type: ignore[no-untyped-call]
    return _product(x, weight, bias)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        available
        and x.numel() * weight.shape[0] >= WORTHWHILE
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not weight.requires_grad
        and (bias is None or (bias.is_contiguous() and not bias.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not _has_tangent(x)
    )


def _has_tangent(x: Tensor) -> bool:
    """Whether forward derivatives are taken, which oneDNN's product would drop."""
    dual = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return dual.tangent is not None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, _onednn(x, weight, bias, "none", [], ""))


class _Frozen(torch.autograd.Function):
    """A linear map that is not trained, differentiable in its input as often as asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return linear(grads[0], ctx.weight.T, None), None, None


def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x_shape.numel() * weight_shape[0]


if available:  # every counter of PyTorch's has to know
    register_flop_formula(_onednn)(_flops)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _Conv1D(Conv1D):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


WRITTEN: dict[type[nn.Module], type[nn.Module]] = {_Linear: nn.Linear, _Conv1D: Conv1D}
"""What the modules of this file stand for."""


def widen(model: nn.Module) -> None:
    """Let a model make its products so from now on."""
    if available:
        # One with a forward of its own is a sharded model's.
        parts = [part for part in model.modules() if "forward" not in vars(part)]
        _exchange(parts, {own: ours for ours, own in WRITTEN.items()})


@contextmanager
def own_products(model: nn.Module) -> Iterator[None]:
    """Let a model make its products by PyTorch's own while the context is open."""
    changed = [part for part in model.modules() if type(part) in WRITTEN]
    _exchange(changed, WRITTEN)
    try:
        yield
    finally:
        _exchange(changed, {own: ours for ours, own in WRITTEN.items()})


def _exchange(parts: list[nn.Module], kinds: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    for part in parts:
        part.__class__ = kinds.get(type(part), type(part))
