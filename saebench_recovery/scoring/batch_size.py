"""How many flips one attack step takes at a time, and a kill can cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saebench_recovery.model.hooks import blocks
from saebench_recovery.scoring.setting import Flip, Setting

CHUNK_BYTES = 2**29  # activations of one attack step that may live at once
MAX_ROWS = 1024
FLOAT_BYTES = 4
SHARE = 10  # of a task's flips, one in so many may be of one chunk
LEAST_FLIPS = 12  # of a chunk: below, steps cost more than what a kill would repeat


def flips_at_stake(flips: int) -> int:
    """Flips of a chunk at most, which is what a kill can cost: a tenth, where that is not too few.

    So many are attacked together, but what the memory holds.
    """
    return max(LEAST_FLIPS, flips // SHARE)


def flips_that_fit(setting: Setting, flips: Sequence[Flip]) -> int:
    """Flips per attack step, from what its backward pass keeps in memory.

    An estimate is enough: an accelerator that runs out halves it.
    """
    target = setting.target
    room = CHUNK_BYTES
    if target.device.startswith("cuda"):
        room = int(torch.cuda.mem_get_info(target.device)[0]) // 4
    each = FLOAT_BYTES * len(blocks(target.model)) * _floats_per_flip(setting, flips)
    return max(1, min(MAX_ROWS // setting.variants, room // each))


def _floats_per_flip(setting: Setting, flips: Sequence[Flip]) -> int:
    """What a block keeps of one flip, all its variants together."""
    attack, task = setting.attack, setting.task
    examples = [flip.example for flip in flips]
    longest = max((len(e.prompt) for e in examples), default=1)
    starts = (
        task.insertion(e) if attack.length else min(attack.positions(task, e)) for e in examples
    )
    ahead = (len(e.prompt) - first for e, first in zip(examples, starts, strict=True))
    window = max([1, *ahead]) + attack.length
    # Answers of several tokens take a row each, behind the prompt.
    answers = [a for f in flips for a in (*f.example.candidates, *f.wrong.candidates)]
    tail = max(map(len, answers), default=1) - 1
    rows = max((len(f.wrong.candidates) for f in flips), default=1) if tail else 1
    config: Any = setting.target.model.config
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    # Some 24 widths for each token, and attention weights twice.
    per_token = 24 * width + 2 * heads * (longest + attack.length + tail)
    per_prompt = 2 * width * longest  # keys and values, which the variants share
    return setting.variants * rows * (window + tail) * per_token + per_prompt
