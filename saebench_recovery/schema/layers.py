"""What `saebench sweep-layer` finds: the perturbed hook point moved through the model."""

from __future__ import annotations

from pydantic import Field

from saebench_recovery.schema.values import Finite, Rate, Stored


class LayerPoint(Stored):
    """The row of one perturbed hook point."""

    site: str
    identity: str = Field(description="of the run that the row stands in")
    recovery: Rate
    wrong_target: Rate
    median_norm_recovers: Finite | None
    median_norm_injects: Finite | None


class LayerSweep(Stored):
    """One task: a point for each hook point, in the order of the forward pass."""

    task: str
    defense: str
    attack: str
    points: tuple[LayerPoint, ...]
    withstands: Rate = Field(
        description="valid flips that no hook point recovers at the budget: the scalar by which a "
        "defense is read"
    )
