"""Compute accounting: passes, token-layers, FLOPs, seconds and peak memory.

Work is counted where the model runs, for whoever asked for it: every meter that is open when a
pass is made counts it, and counts its backward pass when that is made. FLOPs are those of matrix
products. They are measured once for each kind of pass, because measuring slows small models
several times over, and scaled by the number of rows after that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from saebench_recovery.schema import Cost

_open: ContextVar[tuple[Meter, ...]] = ContextVar("meters", default=())
_costs: WeakKeyDictionary[nn.Module, dict[Hashable, PassCost]] = WeakKeyDictionary()


@dataclass(frozen=True)
class PassCost:
    """FLOPs of one row of a kind of pass.

    Weights are frozen, so a product has one gradient, which costs what the product costs; only
    where both factors depend on what is differentiated (attention among a window's own tokens)
    it has two.
    """

    forward: float
    backward: float


@dataclass
class _Noted:
    """FLOPs of a pass whose factors both have a gradient, and those that no counter sees."""

    twofold: float = 0.0
    unseen: float = 0.0


_made = [0]  # rows of all passes of this process, whichever meters are open
_noted: list[_Noted] = []  # while a pass is measured


class Meter:
    """Adds up the work of one role (the attack, or the scoring) while it is open."""

    def __init__(self) -> None:
        self.forward = self.backward = self.token_layers = 0
        self.flops = 0.0
        self.seconds = 0.0
        self.peak_bytes = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count all passes made inside, the wall-clock seconds and the most memory in use."""
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        devices = range(torch.cuda.device_count() if in_use else 0)
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        token = _open.set((*_open.get(), self))
        try:
            yield
        finally:
            _open.reset(token)
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

    def _add(self, rows: int, token_layers: int, cost: PassCost) -> None:
        self.forward += rows
        self.token_layers += token_layers
        self.flops += rows * cost.forward

    def _add_backward(self, rows: int, cost: PassCost) -> None:
        self.backward += rows
        self.flops += rows * cost.backward


class _Ticks(Meter):
    """Counts passes, however many rows they have, and tells each."""

    def __init__(self, told: Callable[[int], None]) -> None:
        super().__init__()
        self.told, self.passes = told, 0

    def _add(self, rows: int, token_layers: int, cost: PassCost) -> None:
        self.passes += 1
        self.told(self.passes)


@contextmanager
def ticking(told: Callable[[int], None]) -> Iterator[None]:
    """Call `told` with the number of passes that were made inside, at each of them."""
    token = _open.set((*_open.get(), _Ticks(told)))
    try:
        yield
    finally:
        _open.reset(token)


def counted(
    model: nn.Module, work: Callable[[], Tensor], *, kind: Hashable, rows: int, token_layers: int
) -> Tensor:
    """Do `work`, a pass of `rows` rows through the model that returns what was computed last.

    `kind` names all that its FLOPs per row depend on; `token_layers` are tokens times blocks.
    """
    meters = _open.get()
    _made[0] += rows
    if not meters:
        return work()
    costs = _costs.setdefault(model, {})
    if kind in costs:
        result = work()
    else:
        result, costs[kind] = _measured(work, rows)
    cost = costs[kind]
    for meter in meters:
        meter._add(rows, token_layers, cost)
    if result.requires_grad:

        def backward(_: Tensor) -> None:
            for meter in meters:
                meter._add_backward(rows, cost)

        result.register_hook(backward)  # type: ignore[no-untyped-call]
    return result


def rows_made() -> int:
    """Rows of all passes that this process has made, whether a meter counted them or not."""
    return _made[0]


def costs_as(model: nn.Module, like: nn.Module) -> None:
    """Take a copy's passes to cost what the original's do."""
    _costs[model] = _costs.setdefault(like, {})


def count_product(result: Tensor, flops: float) -> Tensor:
    """Count a product outside of the blocks (the unembedding), and its gradient when taken."""
    meters = _open.get()

    def add(_: Tensor | None = None) -> None:
        for meter in meters:
            meter.flops += flops

    add()
    if meters and result.requires_grad:
        result.register_hook(add)  # type: ignore[no-untyped-call]
    return result


def count_backward(rows: int, flops_per_row: float) -> None:
    """Count backward passes that start in the middle of the model, where no hook sees them."""
    for meter in _open.get():
        meter._add_backward(rows, PassCost(0.0, flops_per_row))


def note_twofold(flops: float, *, counted: bool = True) -> None:
    """Tell the measurement under way, if any, of products that have two gradients.

    Where they are not made as matrix products, PyTorch's counter has not `counted` them.
    """
    if _noted:
        _noted[-1].twofold += flops
        _noted[-1].unseen += 0.0 if counted else flops


def _measured(work: Callable[[], Tensor], rows: int) -> tuple[Tensor, PassCost]:
    _noted.append(_Noted())
    try:
        with FlopCounterMode(display=False) as counter:
            result = work()
    finally:
        noted = _noted.pop()
    forward = (counter.get_total_flops() + noted.unseen) / rows
    return result, PassCost(forward, forward + noted.twofold / rows)


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Work added up; of the memory in use the most."""
    summed = ("forward", "backward", "token_layers", "flops", "seconds")
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return Cost(
        **{name: sum(getattr(cost, name) for cost in costs) for name in summed},
        peak_bytes=max(peaks, default=None),
    )
