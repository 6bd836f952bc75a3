"""Compute accounting: passes, token-layers, FLOPs, seconds and peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from saebench_recovery.schema import Cost

T = TypeVar("T")


class Trail:
    """What the search has cost each of N rows, and had cost when its objective was first reached.

    FLOPs of the passes through the tail, in float64 [N]; `first_N` is infinite until then. Every
    selection of a problem's rows writes into the one trail of the whole problem.
    """

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.spent_N = torch.zeros(size, dtype=torch.float64, device=device)
        self.first_N = torch.full_like(self.spent_N, torch.inf)

    def spend(self, row_N: Tensor, flops: float) -> None:
        """Add a pass that cost so many FLOPs a row."""
        self.spent_N[row_N] += flops

    def reach(self, row_N: Tensor, reached_N: Tensor) -> None:
        """Note the rows whose objective is reached now."""
        now_N = torch.where(reached_N, self.spent_N[row_N], torch.inf)
        self.first_N[row_N] = torch.minimum(self.first_N[row_N], now_N)


class Meter:
    """Adds up the work of one role (the attack, or the scoring).

    FLOPs of matrix products, forward and backward, are counted once per kind of pass, because
    counting slows small models several times over, and scaled by the number of rows after that.
    """

    def __init__(self) -> None:
        self.forward = self.backward = self.token_layers = 0
        self.flops = 0.0
        self.seconds = 0.0
        self.peak_bytes = 0
        self._per_row: dict[Hashable, float] = {}

    def run(
        self,
        work: Callable[[], T],
        *,
        rows: int,
        tokens: int,
        layers: int,
        prefix: int = 0,
        backward: bool = False,
        logits: str = "candidates",
    ) -> T:
        """Do `work`, a pass over `rows` rows of `tokens` tokens through `layers` blocks.

        `prefix` cached tokens stand before them, and `logits` names which logits are computed:
        both cost FLOPs too, so they are part of the kind of pass.
        """
        kind = (tokens, layers, prefix, backward, logits)
        if kind in self._per_row:
            result = work()
        else:
            with FlopCounterMode(display=False) as counter:
                result = work()
            self._per_row[kind] = counter.get_total_flops() / rows
        self.forward += rows
        self.backward += rows * backward
        self.token_layers += rows * tokens * layers
        self.flops += self._per_row[kind] * rows
        return result

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the wall-clock seconds spent inside, and note the most memory in use meanwhile."""
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        devices = range(torch.cuda.device_count() if in_use else 0)
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        try:
            yield
        finally:
            for device in devices:
                torch.cuda.synchronize(device)
            self.seconds += time.perf_counter() - started
            peak = sum(torch.cuda.max_memory_allocated(device) for device in devices)
            self.peak_bytes = max(self.peak_bytes, peak)

    def cost(self) -> Cost:
        return Cost(
            forward=self.forward,
            backward=self.backward,
            token_layers=self.token_layers,
            flops=round(self.flops),
            seconds=self.seconds,
            peak_bytes=self.peak_bytes or None,
        )
