"""Whose NaN or infinity spoils a search: it is made again, and each call is looked at.

A search that is shown NaN returns NaN or fails, and is not to blame. To look at every call would
cost every search a wait for the device, so only one that has failed is made in this way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saebench_recovery.base.plugin import PluginError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Output
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem


def looked_at(problem: Problem) -> Problem:
    """The same problem; its defense and its task raise where they make NaN of finite numbers."""
    return problem.with_engine(_looked_at)


def _looked_at(engine: Engine) -> Engine:
    defense: Any = _Defense(engine.active.defense)
    task: Any = _Task(engine.task)
    return replace(engine, active=replace(engine.active, defense=defense), task=task)


class _Plugin:
    """A plugin, in everything but what is looked at."""

    def __init__(self, plugin: Any) -> None:
        self._plugin = plugin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plugin, name)


class _Defense(_Plugin):
    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        intervene = partial(self._plugin.intervene, site)
        return _called(self._plugin.title, "intervene", intervene, resid_BTD)


class _Task(_Plugin):
    def objective(self, output: Output) -> Tensor:
        def objective(scores_EC: Tensor) -> Tensor:
            value_E: Tensor = self._plugin.objective(replace(output, scores_EC=scores_EC))
            return value_E

        return _called(self._plugin.title, "objective", objective, output.scores_EC)


def _called(title: str, method: str, function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    """What the function returns for a tensor.

    Raises:
        PluginError: that, or later the gradient that it passes, is not finite, and what it was
            made of is.
    """

    def refuse(what: str) -> None:
        raise PluginError(title, method, f"{what} NaN or infinity in a search", fault="not-finite")

    inside = given.view_as(given)  # only what passes here comes back to it
    returned = function(inside)
    if not isinstance(returned, Tensor):
        return returned
    sound = bool((given < torch.inf).all())  # what cannot be shown scores minus infinity
    if sound and not _finite(returned):
        refuse("returned")
    if inside.requires_grad and returned.requires_grad:
        came: list[bool] = []

        def check(grad: Tensor) -> None:
            if all(came) and not _finite(grad):
                refuse("has a gradient of")

        returned.register_hook(lambda grad: came.append(_finite(grad)))  # type: ignore[no-untyped-call]
        inside.register_hook(check)  # type: ignore[no-untyped-call]
    return returned


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())
