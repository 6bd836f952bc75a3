"""Stable splits by key: an item's split depends on nothing but its own name."""

import hashlib
from typing import Literal

Part = Literal["selection", "evaluation", "train"]


def fraction_of(key: str) -> float:
    """A number in [0, 1) that depends only on `key` (the same on every machine and run)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split_of(key: str, *, selection: float, evaluation: float) -> Part:
    """Assign `key` to a split; `selection` and `evaluation` are fractions of all keys.

    Selection and evaluation never overlap, and neither is ever trained on.
    """
    position = fraction_of(key)
    if position < selection:
        return "selection"
    return "evaluation" if position < selection + evaluation else "train"
