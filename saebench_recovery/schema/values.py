"""What every stored model is made of: frozen, finite, and null where there is nothing to count."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from saebench_recovery.base.notebook import Shown

SCHEMA_VERSION = 2

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**30)]  # more, and it might not fit a float


class Stored(Shown, BaseModel):
    """Base of everything that is written to disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Versioned(Stored):
    """A file of its own, which names the version of the schema that it follows."""

    schema_version: int = Field(default=SCHEMA_VERSION, strict=True)  # `true` is no number


class Rate(Stored):
    """`k` of `n` with a 95 % interval: Wilson at the effective sample size, with a t quantile.

    See `scoring.statistics.rate`.
    """

    k: Count
    n: Count
    rate: Share | None
    low: Share | None
    high: Share | None


class Mean(Stored):
    """A mean over `n` examples with a 95 % t interval over clusters, corrected for skewness.

    See `scoring.statistics.mean`; of a bounded figure, the interval ends where its values do.
    """

    n: Count
    mean: Finite | None
    median: Finite | None
    max: Finite | None
    low: Finite | None
    high: Finite | None


# They share no required field but `n`, so which one it is need not be decided by trying both.
Summary = Annotated[Rate | Mean, Field(union_mode="left_to_right")]
