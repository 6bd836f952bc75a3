"""What a run is, and its identity: a hash of everything that changes its numbers."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ThreatModel = Literal["reclamp", "post"]

# Preset budgets of the recovery curve, relative to the defended residual's norm.
CURVE_BUDGETS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class Limits(BaseModel):
    """How much drift a constrained recovery may show, in every scope."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drift: float = Field(default=0.05, ge=0, allow_inf_nan=False, description="relative, latents")
    decode: float = Field(default=0.05, ge=0, allow_inf_nan=False, description="relative, decoded")


class RunSpec(BaseModel):
    """One defense against one attack on one or more tasks of a target.

    `defense_config`, `attack_config` and `task_config` are what the user said; the run writes
    the resolved configurations (with the target's own defaults) into the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = "organism"
    tasks: tuple[str, ...] = ()
    defense: str = "clamp"
    attack: str = "orthogonal"
    defense_config: dict[str, Any] = Field(default_factory=dict)
    attack_config: dict[str, Any] = Field(default_factory=dict)
    task_config: dict[str, Any] = Field(default_factory=dict)
    threat_model: ThreatModel = "reclamp"
    budget: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.25
    limits: Limits = Limits()
    seed: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    # Everything below changes speed, not numbers (up to float rounding), so it is not identity.
    device: str = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None


NOT_IDENTITY = frozenset({"device", "batch_size"})
