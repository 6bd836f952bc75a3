"""Tensors that calculate as PyTorch does: one of a class of its own could say what it likes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Parameter

PLAIN: set[type] = {Tensor, Parameter}


def is_plain(value: object) -> bool:
    return type(value) in PLAIN
