"""Whether an SAE of some width can be trained in the memory that is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.training.recipe import BATCH, Recipe

FLOAT = 4  # bytes
# Of the weights: they themselves, their gradients and Adam's two moments.
COPIES = 4
# Of a batch's latents [BATCH, M]: pre-activations, activations, the same for the dead latents'
# loss, and gradients.
ACTIVATIONS = 8


def needed_bytes(width: int, d_model: int, block: int) -> int:
    """An estimate for training: weights, a step's latents, and a block of residuals."""
    per_latent = COPIES * 2 * d_model + ACTIVATIONS * BATCH
    return FLOAT * (width * per_latent + 2 * block * d_model)


def check_memory(recipe: Recipe, d_model: int, device: str) -> int:
    """The estimate in bytes.

    Raises:
        UserError: it is more than is free.
    """
    needed, free = needed_bytes(recipe.width, d_model, recipe.block), free_bytes(device)
    if needed > free:
        each = needed_bytes(1, d_model, 0)
        fits = max(0, free - needed_bytes(0, d_model, recipe.block)) // each
        raise UserError(
            f"training a width of {recipe.width} at {d_model} dimensions needs about "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}; "
            f"give a --width of at most {fits}"
        )
    return needed


def free_bytes(device: str) -> int:
    """Memory of a device that can be had without swapping."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
