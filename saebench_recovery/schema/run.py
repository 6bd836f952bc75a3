"""A run on disk: what was asked, what made it, and its rows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from saebench_recovery.schema.facts import Cost, Facts
from saebench_recovery.schema.row import Row
from saebench_recovery.schema.values import Count, Finite, Stored, Versioned


class Agreement(Stored):
    """The check at load: one random prompt in the searching and in the reference engine."""

    errors: dict[str, Finite] = Field(
        description="largest relative error by hook point and of what comes after"
    )
    refused: dict[str, str] = Field(
        description="kinds of hook points that the architecture does not have here, and why"
    )
    blocks: tuple[Count, ...] = Field(
        description="that were run; of a large model, not all of those that are alike"
    )


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
    agreement: Agreement | None = Field(
        default=None, description="of the two engines at load; null in older results"
    )
    seconds: Finite


class RunResult(Versioned):
    """`result.json`."""

    status: Literal["partial", "complete"]
    identity: str
    spec: dict[str, Any]
    provenance: Provenance
    rows: tuple[Row, ...]


class RunState(Versioned):
    """`run.json`: how far a run has come; `result.json` stands beside it once it is complete."""

    status: Literal["running", "complete"]
    identity: str
    spec: dict[str, Any]
    provenance: Provenance
    facts: tuple[Facts, ...] = Field(description="of the finished tasks")


class StoredChunk(Stored):
    """A line of `chunks.jsonl`: flips of one task under one attack that are on disk for good."""

    task: str
    attack: str
    records: Count = Field(description="how many")
    records_end: Count = Field(description="bytes of `records.jsonl` up to and with its records")
    texts_end: Count = Field(description="the same of `texts.jsonl`; 0 where no texts are kept")
    evidence: str = Field(
        pattern=r"^evidence/\d+\.safetensors$", description="file with its perturbations"
    )
    sha256: str = Field(description="of that file")
    attacking: Cost
    scoring: Cost


class StoredFailure(Stored):
    """A line of `failures.jsonl`: a member of a suite that failed on a task."""

    task: str
    attack: str
    line: str
