"""How many flips one attack step takes at a time, and a kill can cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from saebench_recovery.model.hooks import blocks, start_block
from saebench_recovery.scoring.setting import Flip, Setting

CHUNK_BYTES = 2**29  # activations of one attack step that may live at once
MAX_ROWS = 1024
FLOAT_BYTES = 4
CHUNKS = 5  # of a task at least: one of them is what a kill costs
LEAST_FLIPS = 12  # of a chunk: with fewer, a step of a small model costs as much


def flips_of_a_chunk(setting: Setting, flips: int, room: int, of_task: int) -> int:
    """Flips that are attacked together, and lost together by a kill, where `room` fit.

    `flips` are all that the attack is tried on; a suite's later member is tried on few of the
    task's. On an accelerator all that fit: what smaller chunks cost there has not been measured.
    """
    if setting.target.device != "cpu":
        return room
    most = min(room, max(LEAST_FLIPS, math.ceil(of_task / CHUNKS)))
    chunks = math.ceil(flips / most)  # of equal size
    return math.ceil(flips / chunks) if chunks else most


def flips_that_fit(setting: Setting, flips: Sequence[Flip]) -> int:
    """Flips per attack step, from what its backward pass keeps in memory.

    An estimate is enough: an accelerator that runs out halves it.
    """
    target = setting.target
    room = CHUNK_BYTES
    if target.device.startswith("cuda"):
        room = int(torch.cuda.mem_get_info(target.device)[0]) // 4
    # Blocks before the first perturbed site are run once, and keep nothing.
    first = min((start_block(site) for site in setting.measured_sites), default=0)
    depth = max(1, len(blocks(target.model)) - first)
    each = FLOAT_BYTES * depth * _floats_per_flip(setting, flips)
    return max(1, min(MAX_ROWS // setting.variants, room // (each * setting.attack.abreast)))


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
    # Answers of several tokens stand behind the prompt, in one packed row.
    longer = (sum(len(a) - 1 for a in f.wrong.candidates) for f in flips)
    tail = max(longer, default=0)
    tail += tail > 0  # the first one's last token is run, too
    config: Any = setting.target.model.config
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    # Some 24 widths for each token, and attention weights twice.
    per_token = 24 * width + 2 * heads * (longest + attack.length + tail)
    per_prompt = 2 * width * longest  # keys and values, which the variants share
    return setting.variants * (window + tail) * per_token + per_prompt
