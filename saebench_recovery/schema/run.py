"""A run on disk: what was asked, what made it, and its rows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from saebench_recovery.schema.row import Row
from saebench_recovery.schema.values import SCHEMA_VERSION, Finite, Stored


class Provenance(Stored):
    """What produced the numbers."""

    packages: dict[str, str]
    git_commit: str | None
    target_hash: str
    commits: dict[str, str] = Field(
        default_factory=dict,
        description="of the hub's repositories that model and SAEs were read from",
    )
    data_hash: str
    device: str
    dtype: str
    seconds: Finite


class RunResult(Stored):
    """`result.json`."""

    schema_version: int = SCHEMA_VERSION
    status: Literal["partial", "complete"]
    identity: str
    spec: dict[str, Any]
    provenance: Provenance
    rows: tuple[Row, ...]
