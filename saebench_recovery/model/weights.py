"""A model with other weights: a change of its matrices, and a copy that shares all the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from saebench_recovery.base.errors import UserError
from saebench_recovery.model.hooks import blocks
from saebench_recovery.model.meter import costs_as

M = TypeVar("M", bound=nn.Module)


class WeightChange(ABC):
    """What becomes of a model's matrices: a function of each one's name and values."""

    @abstractmethod
    def of(self, name: str, weight: Tensor) -> Tensor | None:
        """What takes a parameter's place, in its shape, dtype and device; None where it stays."""


def matrices(model: nn.Module) -> Mapping[str, nn.Module]:
    """The linear maps inside the blocks by the names of their weights; embeddings stay out.

    Raises:
        UserError: there is none in the form of a module that can be adapted.
    """
    inside = {id(module) for module in blocks(model).modules()}
    found = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    }
    if not found:
        raise UserError(
            f"{type(model).__name__}: its weights cannot be adapted, for its blocks hold no "
            "linear modules; use an attack on the residual stream or on the prompt"
        )
    return found


def inputs_first(module: nn.Module) -> bool:
    """Whether the weight is [inputs, outputs], as in GPT-2, and not the other way round."""
    return isinstance(module, Conv1D)


def copied(model: M, change: WeightChange | None = None) -> M:
    """The same modules anew on the same weights, but for those that change."""
    shared: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
    twin = deepcopy(model, shared)
    if change is None:  # for whoever puts further modules in
        return twin
    costs_as(twin, model)
    for name in matrices(model):
        module: Any = twin.get_submodule(name.rpartition(".")[0])
        changed = change.of(name, model.get_parameter(name))
        if changed is not None:
            module.weight = nn.Parameter(changed, requires_grad=False)
    return twin
