"""Which blocks of a large model the check at load runs: the others hand the residual on."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from saebench_recovery.model.hooks import blocks

ALL_BELOW = 2**28  # bytes of weights: a smaller model is run whole
_PLACES = ("layer_idx", "layer_id", "layer_number")  # names for a block's own number


def run_blocks(model: nn.Module, layers: Collection[int]) -> tuple[int, ...]:
    """The blocks of some hook points, those after them, and the first of each kind.

    Blocks are of one kind if their modules are of the same classes with the same settings: what
    one computes exactly, the others do too, whatever their weights. A hook point at the wrong one
    of two neighbours shows only if both are run.
    """
    every = blocks(model)
    if sum(weight.nbytes for weight in model.parameters()) < ALL_BELOW:
        return tuple(range(len(every)))
    first: dict[object, int] = {}
    for index, block in enumerate(every):
        first.setdefault(_kind(block), index)
    near = {layer + step for layer in layers for step in (0, 1)}
    return tuple(sorted({*first.values(), *near} & set(range(len(every)))))


def _kind(block: nn.Module) -> object:
    return tuple((name, type(module), _settings(module)) for name, module in block.named_modules())


def _settings(module: nn.Module) -> tuple[tuple[str, object], ...]:
    plain = (bool, int, float, str, type(None))
    return tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, plain) and name not in _PLACES
    )
