"""Targets by name: what to load, where each task is defended, and tuned defense settings.

Pure data (`presets.json`), read without importing torch.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from saebench_recovery.errors import UserError


class TaskPreset(BaseModel):
    """How a task is set up on a target; a user's own `-D`/`-T` settings go before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str = Field(description="default hook point of the defense")
    task: dict[str, Any] = Field(default_factory=dict)
    defenses: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Preset(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    model: str = Field(description="folder inside the package, local path, or hub id")
    saes: dict[str, str] = Field(description="hook point -> folder of a SAELens SAE")
    tasks: dict[str, TaskPreset]


def presets() -> dict[str, Preset]:
    """Every preset by name."""
    text = (resources.files("saebench_recovery.target") / "presets.json").read_text("utf-8")
    return TypeAdapter(dict[str, Preset]).validate_json(text)


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: no such target.
    """
    known = presets()
    if name not in known:
        from saebench_recovery.registry import nearest

        raise UserError(f"unknown target {name!r}; {nearest(name, known)}")
    return known[name]
