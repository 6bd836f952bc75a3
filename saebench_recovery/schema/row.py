"""A row: what the records of one (target, task, defense, attack) add up to."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from saebench_recovery.schema.facts import (
    Compute,
    Examples,
    PerturbationKind,
    SideEffects,
    Spread,
)
from saebench_recovery.schema.finding import Finding
from saebench_recovery.schema.record import Constraint
from saebench_recovery.schema.values import Count, Finite, Mean, Rate, Share, Stored, Summary
from saebench_recovery.spec import BudgetUnit, Limits, ThreatModel


class CurvePoint(Stored):
    """Recovery and wrong-target injection at one budget."""

    budget: Finite
    recovery: Rate
    wrong_target: Rate


class ComputePoint(Stored):
    """Recovery if the search had ended once it had spent so much on each flip."""

    flops: Finite
    recovery: Rate


class DriftPoint(Stored):
    """Recovery with drift and decode drift at most so large in every scope."""

    limit: Finite
    recovery: Rate


class Curve(Stored):
    points: tuple[CurvePoint, ...]
    compute: tuple[ComputePoint, ...] = Field(
        default=(), description="up to the most that was spent on any flip"
    )
    drift: tuple[DriftPoint, ...] = ()
    median_norm_recovers: Finite | None = Field(
        description="median over all valid flips of the smallest norm that recovers, in the run's "
        "unit; null where fewer than half recover at any budget"
    )
    median_norm_injects: Finite | None = Field(description="the same for the wrong target")
    median_relative_norm: Finite | None = Field(
        default=None, description="the first, relative to the defended residual's norm"
    )
    recovery_advantage: Finite | None = Field(
        default=None,
        description="median norm that injects over the one that recovers: above 1, the way back is "
        "shorter than the way to a wrong answer",
    )


class Controls(Stored):
    nothing: Rate = Field(description="zero perturbation: must be zero on valid flips")
    random_direction: Rate = Field(description="random direction of the attack's own norm")
    wrong_target: Rate = Field(description="same attack and budget, towards a wrong answer")
    wrong_target_reference: Rate = Field(
        description="the harness's own attack of the same kind, with its own settings or for more"
    )


# What every row is read by, whatever else was measured.
CONTROLS = tuple(Controls.model_fields)
RATES = ("recovery", "constrained", "base_like", *CONTROLS)
MEANS = ("fidelity", "norm")
KINDS = {**dict.fromkeys(RATES, Rate), **dict.fromkeys(MEANS, Mean)}


class Drift(Stored):
    """How far the defended latents moved from where the defense put them, in one scope."""

    relative_l2: Mean = Field(description="|z - z0| / |z0|; examples with |z0| = 0 left out")
    l2: Mean
    linf: Mean
    decode_l2: Mean = Field(description="|(z - z0) W_dec|")
    decode_relative: Mean
    floor_violation: Mean = Field(description="|relu(z0 - z)| / |z0|")
    reactivated_fraction: Mean = Field(description="z > 0 among latents with z0 <= 0")
    preactivation_linf: Mean = Field(description="max |p - p0|: sees below the threshold")
    preactivation_relative: Mean = Field(
        description="root mean square of (p - p0) over what is typical of active latents: decides "
        "where the latents are silent"
    )


class WeightStage(Stored):
    """The flips under weights as they were at a stage of an attack on them; see `Stage`."""

    steps: Count
    tokens: Count
    flops: Finite
    recovery: Rate
    wrong_target: Rate
    retained: Share | None


class SuiteMember(Stored):
    """One attack of a suite, on the flips that those before it left unbroken."""

    attack: str
    tried: Count
    broken: Count = Field(description="recovered inside the constraint limits")
    flops: Count
    failed: str = Field(default="", description="the line, if it failed before it was done")


class Detection(Stored):
    """What a defense's detector rings on; prompts ring if one of their tokens does."""

    stated: Share = Field(description="undisturbed prompts that may ring, as calibrated")
    false_alarms: Rate = Field(description="evaluation prompts that ring undisturbed")
    attacked: Rate = Field(description="perturbed prompts that ring")
    recovered: Rate = Field(description="... among those whose behaviour came back")


class Flag(Finding):
    """Something that makes the row suspicious; an `invalid` row is shown and never ranked."""

    attack: str | None = Field(
        default=None, description="of a suite, the member that it comes from, if it is one's own"
    )

    def __str__(self) -> str:
        return self.name if self.attack is None else f"{self.name} of {self.attack}"


class Row(Stored):
    """One (target, task, defense, attack) under one threat model."""

    task: str
    target: str
    defense: str
    attack: str
    threat_model: ThreatModel
    budget: Finite = Field(description="largest norm of the perturbation at any position")
    budget_unit: BudgetUnit = Field(
        description="of the budget at each position: spread of the site, norm of the defended "
        "residual, or absolute"
    )
    seed: Count
    spreads: dict[str, Spread] = Field(description="per perturbed site")
    features: dict[str, tuple[int, ...]] = Field(description="defended latents per site")
    examples: Examples
    limits: Limits = Field(description="of a constrained and of a base-like recovery")
    measures: dict[str, Summary] = Field(description="see `scoring.measures`")
    under_attack: Rate = Field(
        description="what ranks: base examples that the defense does not flip, and flips that are "
        "recovered inside the limits, of all base examples"
    )
    curve: Curve
    constraint: Constraint
    drift: dict[str, Drift] = Field(description="scopes: perturbed, readout, later")
    figures: dict[str, Mean] = Field(description="what only this task reports")
    detection: Detection | None = Field(default=None, description="for a defense with a detector")
    perturbation: PerturbationKind = PerturbationKind()
    suite: tuple[SuiteMember, ...] = Field(default=(), description="in the order of their turns")
    stages: tuple[WeightStage, ...] = Field(default=(), description="of an attack on weights")
    side_effects: SideEffects
    compute: Compute
    flags: tuple[Flag, ...] = ()

    @property
    def flag_names(self) -> tuple[str, ...]:
        """Each flag by its name, whichever member of a suite it comes from."""
        return tuple(dict.fromkeys(flag.name for flag in self.flags))

    @model_validator(mode="after")
    def _has_what_it_is_read_by(self) -> Self:
        for name, kind in KINDS.items():
            if not isinstance(self.measures.get(name), kind):
                raise ValueError(f"measures has no {kind.__name__.lower()} {name!r}")
        return self

    @property
    def recovery(self) -> Rate:
        """The behaviour is back, with the defense active."""
        return self.rate("recovery")

    @property
    def constrained(self) -> Rate:
        """... and drift is inside the limits in every scope."""
        return self.rate("constrained")

    @property
    def base_like(self) -> Rate:
        """... and the output is close to the clean one."""
        return self.rate("base_like")

    @property
    def fidelity(self) -> Mean:
        return self._mean("fidelity")

    @property
    def norm(self) -> Mean:
        """Norm of the perturbation in the run's unit; null for tokens."""
        return self._mean("norm")

    @property
    def controls(self) -> Controls:
        """What the same flips show without the attack's merit."""
        return Controls(**{name: self.rate(name) for name in CONTROLS})

    def rate(self, name: str) -> Rate:
        """A measure that every row has as a rate, such as one of the controls."""
        found = self.measures[name]
        assert isinstance(found, Rate)
        return found

    def _mean(self, name: str) -> Mean:
        found = self.measures[name]
        assert isinstance(found, Mean)
        return found
