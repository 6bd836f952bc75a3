"""A finding of `saebench check`: what is wrong with a plugin, and what to do about it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saebench_recovery.schema.values import Stored

Level = Literal["error", "invalid", "caution", "note"]


class Finding(Stored):
    """An `error` is refused; a row with an `invalid` one is shown and never ranked."""

    name: str = Field(description="stable, in words joined by hyphens")
    level: Level
    sentence: str = Field(description="what was seen, of which plugin")
    remedy: str
