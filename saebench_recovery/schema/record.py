"""A record: all that was seen of one valid flip under one attack, without a text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saebench_recovery.schema.values import Count, Finite, Share, Stored


class Constraint(Stored):
    """How strictly the attack kept the defended latents in place, by construction."""

    kind: Literal["none", "exact", "first-order"]
    rank: Count = Field(description="dimensions of the residual stream that are forbidden")
    note: str = ""


class Stage(Stored):
    """A flip under weights as they were at a stage of an attack on them, the defense active."""

    steps: Count = Field(description="of training; 0 where weights are only rounded")
    tokens: Count = Field(description="read in training")
    flops: Finite = Field(description="of training")
    shows: bool
    injects: bool | None = Field(description="a wrong answer; null where none could be")
    retained: Share | None = Field(
        description="retain examples that are right, of those that the clean model gets right"
    )


class Record(Stored):
    """One line of `records.jsonl`; its perturbations stand in the chunk's file of evidence."""

    task: str
    attack: str = Field(description="of a suite, the member")
    id: str
    cluster: str = Field(description="the source item; empty where the example stands alone")
    objective_clean: Finite
    objective_defended: Finite
    objective_recovered: Finite = Field(description="under the headline perturbation")
    measures: dict[str, bool | Finite | None] = Field(
        description="a verdict or a number of each measure; null where it is undefined"
    )
    figures: dict[str, Finite | None] = Field(description="what only this task reports")
    drift: dict[str, dict[str, Finite | None]] = Field(description="metrics of each scope")
    tightest_limit: Finite | None = Field(
        description="smallest limit on drift and decode drift that it is inside of; null: none"
    )
    smallest_norm: Finite | None = Field(
        description="smallest norm found that recovers, in the run's unit; null where none does"
    )
    smallest_norm_wrong: Finite | None = Field(description="the same for the wrong target")
    smallest_relative: Finite | None = Field(
        description="the smallest norm, relative to the defended residual's"
    )
    flops: Finite = Field(description="that the search spent on it")
    flops_recovers: Finite | None = Field(
        description="... when its objective was first reached; null if it never was"
    )
    constraint: Constraint
    stages: tuple[Stage, ...] = Field(
        default=(), description="of an attack on weights; the last is the headline"
    )
    alarmed: bool | None = Field(
        default=None, description="whether the defense's detector, if it has one, rang"
    )
    flags: tuple[str, ...] = Field(default=(), description="of this flip: no-gradient, no-suffix")


class Texts(Stored):
    """One line of `texts.jsonl`, written only on request: what was asked and what was said."""

    task: str
    id: str
    prompt: str
    clean: str
    defended: str
    recovered: str = Field(description="at the headline budget, whether it counts or not")
