"""Activation functions that a model writes as several operations, as one.

The tanh approximation of GELU as GPT-2 has it takes eight passes over its input, most of them kept
for the backward pass; PyTorch's own takes one. Both agree within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import activations


def _gelu_tanh(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


FUSED: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    activations.NewGELUActivation: _gelu_tanh,
    activations.FastGELUActivation: _gelu_tanh,
    activations.AccurateGELUActivation: _gelu_tanh,
}


def fuse(model: nn.Module) -> None:
    """Let a model compute its activation functions in one operation from now on."""
    for module in model.modules():
        # One with a forward of its own is a sharded model's.
        if type(module) in FUSED and "forward" not in vars(module):
            module.forward = FUSED[type(module)]


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Let a model compute its activation functions as it was written, while the context is open."""
    changed = [m for m in model.modules() if _is_fused(m)]
    for module in changed:
        del module.forward
    try:
        yield
    finally:
        fuse(model)


def _is_fused(module: nn.Module) -> bool:
    return type(module) in FUSED and vars(module).get("forward") is FUSED[type(module)]
