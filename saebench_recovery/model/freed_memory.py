"""Memory of a pass's tensors, kept from one operation to the next.

What a large tensor leaves, glibc hands back to the system, which clears each page again before the
next tensor gets it. It learns from what is freed, up to 32 MiB: smaller blocks come from memory
that it keeps from then on, of which up to twice as much lies unused.
"""

from __future__ import annotations

import torch

LARGEST = 31 * 2**20  # bytes; a block and its header have to stay below the 32 MiB


def keep_freed_memory() -> None:
    """Let this process keep what tensors of up to `LARGEST` bytes leave."""
    torch.empty(LARGEST, dtype=torch.uint8)  # never written to, so no page of it is taken
