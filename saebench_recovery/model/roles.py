"""What the engine asks of a defense and of a task: the plugins' interfaces stand above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Example, Output
from saebench_recovery.sae.latents import Latents


class Intervention(Protocol):
    """A fitted defense; see `interfaces.Defense`."""

    name: ClassVar[str]
    sees_only_latents: bool
    latents: Mapping[Site, Latents]

    @property
    def title(self) -> str: ...

    @property
    def config(self) -> Any: ...

    @property
    def false_alarms(self) -> float | None: ...

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor: ...

    def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor: ...


class Judge(Protocol):
    """The read-out of a behaviour; see `interfaces.Task`."""

    name: ClassVar[str]
    pool: Site | None
    new_tokens: int

    def objective(self, output: Output) -> Tensor: ...

    def behaviour(self, output: Output) -> Tensor: ...

    def positions(self, example: Example) -> tuple[int, ...]: ...

    def insertion(self, example: Example) -> int: ...

    def beginnings(self) -> Sequence[str]: ...
