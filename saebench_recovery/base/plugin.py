"""What the three kinds of plugins have in common: a name and a validated configuration."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


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
