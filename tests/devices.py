"""Devices that this machine does not have: tensors that say they lie there, and do not mix.

The numbers stay in main memory. An operation over tensors of two devices raises, as it does on
accelerators; indices and single numbers may come from main memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from saebench_recovery.base.plain_tensors import PLAIN

KIND = "lazy"  # a type of device that every build of torch names and none has
FIRST, SECOND = f"{KIND}:0", f"{KIND}:1"
_float64 = True
_MOVES = ("aten::_to_copy", "aten::copy_")
_INDEXES = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Placed(Tensor):
    """A tensor on a device that is not there; `numbers` is the one that it stands for."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, device: torch.device) -> Placed:
        made: Placed = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=device,
        )
        made.numbers = numbers
        return made

    def tolist(self) -> Any:
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


PLAIN.add(Placed)


class _Everywhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees also the operations that make a tensor."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class Float64Error(TypeError):
    """What Apple's `mps` says of double precision."""


@contextmanager
def without_float64() -> Iterator[None]:
    """Meanwhile the simulated devices hold no tensor in double precision."""
    global _float64
    _float64 = False
    try:
        yield
    finally:
        _float64 = True


@contextmanager
def simulated_devices() -> Iterator[None]:
    """Meanwhile tensors can be made on, and moved to, `FIRST` and `SECOND`."""
    before = torch._C._only_lift_cpu_tensors()
    # Otherwise torch.tensor(..., device=...) would ask the device's own code.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Everywhere():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the numbers, its results placed where its arguments were or as asked."""
    name: str = function._schema.name
    found: list[torch.device] = []

    def plain(value: Any) -> Any:
        if isinstance(value, Placed):
            found.append(value.device)
            return value.numbers
        if isinstance(value, Tensor) and value.ndim and name not in _INDEXES:
            found.append(value.device)
        return value

    there, said = tree_map(plain, args), tree_map(plain, kwargs)
    wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if wanted is not None and wanted.type == KIND:
        said["device"] = "cpu"
    if len(set(found)) > 1 and name not in _MOVES:
        raise RuntimeError(f"{name} over tensors on {', '.join(sorted(map(str, set(found))))}")
    result = function(*there, **said)
    if function._schema.is_mutable and isinstance(args[0], Tensor):
        return args[0]
    place = wanted or next((d for d in found if d.type == KIND), torch.device("cpu"))

    def placed(value: Any) -> Any:
        if not (isinstance(value, Tensor) and place.type == KIND):
            return value
        if value.dtype == torch.float64 and not _float64:
            raise Float64Error(f"{name} makes a float64 tensor on {place}")
        return Placed(value, place)

    return tree_map(placed, result)
