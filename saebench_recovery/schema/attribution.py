"""What `saebench attribute` finds: through which part of a delta its effect goes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saebench_recovery.schema.values import Count, Finite, Mean, Rate, Share, Stored

Source = Literal["recovering", "random", "wrong-target"]


class PartEffect(Stored):
    """What one part of the deltas does under the active defense, over flips.

    Rates leave out flips whose part is zero. At one norm, every part has the norm of its whole
    delta, or of the smallest one that works, which is not known of random deltas.
    """

    part: Literal["clamped", "other", "residual", "top"]
    length: Mean = Field(description="norm of the part over the delta's")
    alone: Rate = Field(description="the part alone works")
    without: Rate = Field(description="the delta works with the part knocked out")
    share: Mean | None = Field(
        description="Shapley value of the part for whether the delta works; null for a part of one"
    )
    at_full_norm: Rate = Field(description="the part works at the whole delta's norm")
    random_at_full_norm: Rate = Field(
        description="a random direction in its subspace works at that norm"
    )
    at_smallest_norm: Rate = Field(description="the part works at the smallest working norm")
    random_at_smallest_norm: Rate = Field(description="a random direction of that norm does")


class DeltaEffect(Stored):
    """One kind of deltas: those that recover, random ones, those that inject a wrong answer."""

    source: Source
    works: Rate = Field(description="whole deltas that work when they are replayed")
    later_residual_held: Rate = Field(
        description="... with the SAE residual of later sites held at its defended value"
    )
    later_latents_held: Rate = Field(description="... with the latents of later sites held")
    parts: tuple[PartEffect, ...]
    carriers: tuple[str, ...] = Field(
        description="parts that carry the effect and are not told apart; none where nothing does"
    )
    verdict: str


class Contrast(Stored):
    """Two figures of the same flips, the second less the first."""

    first: str
    second: str
    difference: Finite
    low: Finite | None
    high: Finite | None
    p_value: Share

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class Place(Stored):
    """Where the recovering deltas act, and of what they are there."""

    site: str
    behind_readout: int = Field(description="position, counted from the last prompt token")
    flips: Count
    lengths: dict[str, Mean] = Field(description="norm of each part there, over the whole delta's")
    alone: Rate = Field(description="what the deltas do there works alone")
    without: Rate = Field(description="the deltas work without what they do there")


class TaskAttribution(Stored):
    task: str
    attack: str = Field(description="whose deltas these are; of a suite, all members")
    flips: Count = Field(description="recovered flips whose deltas were split")
    top: Count = Field(description="latents that `top` holds at each token")
    deltas: tuple[DeltaEffect, ...]
    contrasts: tuple[Contrast, ...] = Field(
        description="whether one part carries more than another, than a random direction in its "
        "subspace at one norm, and than it carries of a wrong answer"
    )
    places: tuple[Place, ...]


class Attribution(Stored):
    """`saebench attribute --json`."""

    identity: str
    tasks: tuple[TaskAttribution, ...]
    skipped: tuple[str, ...] = Field(description="tasks with nothing to split, and why")
