"""One published experiment as data: every setting with its origin, and the published numbers.

The files stand in a folder per protocol (`published/ioi.toml`), one for each task. Nothing here
imports torch.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import nearest
from saebench_recovery.schema import Count, Finite, Stored

Text = Annotated[str, Field(min_length=1)]


class Setting(Stored):
    """A value that a run is given, and why.

    `published`: the paper, its code or its results have it, and `source` says where. `our choice`:
    they do not determine it. `deviation`: they do, but our rules of soundness forbid it, or the
    harness has no counterpart; `source` says what was published and what is wrong with it.
    """

    value: Any
    basis: Literal["published", "our choice", "deviation"]
    source: Text
    also: tuple[Any, ...] = Field(default=(), description="other values that were published")


class Difference(Stored):
    """Something in which a run differs from the published one that is no setting."""

    published: Text
    ours: Text
    reason: Text


class Number(Stored):
    """A published figure: `k` of `n`, or a `value` with its interval where there is one."""

    measure: Text
    ours: str | None = Field(
        default=None, description="path of our figure in a row; null where there is none"
    )
    tasks: tuple[str, ...] = Field(
        default=(), description="the rows that the figure is the mean of; all if none are named"
    )
    k: Count | None = None
    n: Count | None = None
    value: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None
    note: str = Field(default="", description="what to mind when comparing")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.k is None) != (self.n is None) or (self.k is None) == (self.value is None):
            raise ValueError(f"{self.measure}: give k and n, or value")
        return self


class Arm(Stored):
    """One published attack, under the name of the attack of ours that it corresponds to."""

    title: Text
    numbers: tuple[Number, ...]
    attack_config: dict[str, Setting] | None = Field(
        default=None, description="in place of the experiment's own"
    )


class Experiment(Stored):
    """What one published experiment did, in the names of a `RunSpec`."""

    title: Text
    source: Text
    target: str
    task: str
    arm: str = Field(description="the attack that is run unless another is asked for")
    run: dict[str, Setting] = Field(description="fields of a RunSpec")
    defense_config: dict[str, Setting]
    attack_config: dict[str, Setting] = Field(description="of every arm without its own")
    task_config: dict[str, Setting]
    arms: dict[str, Arm]
    differences: tuple[Difference, ...]

    def settings_of(self, attack: str) -> dict[str, Setting]:
        """What an attack is set to; nothing for one that is not among the arms."""
        if attack not in self.arms:
            return {}
        own = self.arms[attack].attack_config
        return self.attack_config if own is None else own

    @model_validator(mode="after")
    def _default_arm_exists(self) -> Self:
        if self.arm not in self.arms:
            raise ValueError(f"no arm {self.arm!r}")
        return self


def protocols() -> list[str]:
    """Names of all protocols."""
    return sorted(folder.name for folder in _home().iterdir() if _files(folder))


def experiments(protocol: str) -> dict[str, Experiment]:
    """The experiments of a protocol by their task.

    Raises:
        UserError: no such protocol.
    """
    if protocol not in protocols():
        raise UserError(f"unknown protocol {protocol!r}; {nearest(protocol, protocols())}")
    contents = (tomllib.loads(file.read_text("utf-8")) for file in _files(_home() / protocol))
    read = (Experiment.model_validate(content) for content in contents)
    return {experiment.task: experiment for experiment in read}


def _home() -> Traversable:
    return resources.files("saebench_recovery.protocols")


def _files(folder: Traversable) -> list[Traversable]:
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted((f for f in inside if f.name.endswith(".toml")), key=lambda file: file.name)
