"""What an intervention must return: a residual stream like the one that it was given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from saebench_recovery.base.plain_tensors import is_plain


@dataclass(frozen=True)
class Fault:
    """`name` is that of the finding of `saebench check`, `problem` goes on after `intervene`."""

    name: str
    problem: str


def fault_of(returned: object, resid: Tensor) -> Fault | None:
    """What is wrong with what came back for a residual [B, T, D]; looks at no value."""
    if returned is None:
        return Fault("returns-none", "returned None, not a residual; does it end without a return?")
    if not (isinstance(returned, Tensor) and is_plain(returned)):
        return Fault("wrong-type", f"returned a {type(returned).__name__}, not a plain tensor")
    if returned.shape != resid.shape:
        shapes = f"{list(returned.shape)} for a residual of shape {list(resid.shape)}"
        return Fault("wrong-shape", f"returned the shape {shapes}")
    if returned.dtype != resid.dtype:
        return Fault("wrong-dtype", f"returned {returned.dtype} for a residual of {resid.dtype}")
    if returned.device != resid.device:
        return Fault("wrong-device", f"returned a tensor on {returned.device}, not {resid.device}")
    return None
