"""What the three kinds of plugins have in common: a name and a validated configuration."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _each_once(indices: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(indices)) != len(indices):
        raise ValueError("an index stands twice")
    return indices


Indices = Annotated[
    tuple[Annotated[int, Field(ge=0, le=2**31)], ...],
    Field(min_length=1),
    AfterValidator(_each_once),
]
"""Indices of latents, each once."""


class PluginConfig(BaseModel):
    """Settings of one plugin: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Plugin:
    """Name and validated configuration, common to the three kinds."""

    name: ClassVar[str] = ""  # set by the registry

    class Config(PluginConfig):
        pass

    def __init__(self, config: PluginConfig | None = None) -> None:
        self.config = config if config is not None else self.Config()
