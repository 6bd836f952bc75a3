"""Double precision where it exists: some accelerators (Apple's `mps`) have none.

For these, what is made once (bases, sums of statistics) is made on the CPU in float64 and cast, and
what is computed at each step is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

WITHOUT = ("mps",)  # types of devices


def has_float64(device: torch.device) -> bool:
    return device.type not in WITHOUT


def finest(device: torch.device) -> torch.dtype:
    """The most precise floating-point type of a device."""
    return torch.float64 if has_float64(device) else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products in the tensors' own precision, also inside of a pass that rounds them."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def fine(tensor: Tensor) -> Tensor:
    """A tensor where it is, in the most precise type of its device."""
    return tensor.to(finest(tensor.device))


def exact(tensor: Tensor) -> Tensor:
    """A tensor in float64: where it is, or on the CPU."""
    return (tensor if has_float64(tensor.device) else on_cpu(tensor)).double()


def in_float64(compute: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What is computed from a tensor in float64, as `fine` as its device has it."""
    return compute(exact(tensor)).to(finest(tensor.device)).to(tensor.device)


def on_cpu(tensor: Tensor) -> Tensor:
    return tensor.cpu()
