"""The typed result of a run: `RunResult` holds one `Row` per (task, attack); pure pydantic.

NaN and infinity are rejected everywhere; a rate or mean over nothing is null, never zero.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from saebench_recovery.spec import BudgetUnit, Limits, ThreatModel

SCHEMA_VERSION = 1

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of everything that is written to disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(Record):
    """`k` of `n` with a 95 % Wilson interval, widened by the design effect of clusters."""

    k: Count
    n: Count
    rate: Share | None
    low: Share | None
    high: Share | None


class Mean(Record):
    """A mean over `n` examples with a 95 % percentile-bootstrap interval over clusters."""

    n: Count
    mean: Finite | None
    median: Finite | None
    max: Finite | None
    low: Finite | None
    high: Finite | None


class Examples(Record):
    n: Count = Field(description="evaluation examples")
    base: Count = Field(description="the clean model shows the behaviour")
    valid: Count = Field(description="... and the defended model does not: valid flips")
    learned: Count = Field(description="valid flips that an attack learned from, not scored")
    clusters: Count = Field(description="source items among the scored flips")


class Constrained(Rate):
    limits: Limits


class CurvePoint(Record):
    """Recovery and wrong-target injection at one relative budget."""

    budget: Finite
    recovery: Rate
    wrong_target: Rate


class ComputePoint(Record):
    """Recovery if the search had ended once it had spent so much on each flip."""

    flops: Finite
    recovery: Rate


class DriftPoint(Record):
    """Recovery with drift and decode drift at most so large in every scope."""

    limit: Finite
    recovery: Rate


class Curve(Record):
    points: tuple[CurvePoint, ...]
    compute: tuple[ComputePoint, ...] = Field(
        default=(), description="up to the most that was spent on any flip"
    )
    drift: tuple[DriftPoint, ...] = ()
    median_norm_recovers: Finite | None = Field(
        description="median over all valid flips of the smallest relative norm that recovers; "
        "null where fewer than half recover at any budget"
    )
    median_norm_injects: Finite | None = Field(description="the same for the wrong target")
    recovery_advantage: Finite | None = Field(
        default=None,
        description="median norm that injects over the one that recovers: above 1, the way back is "
        "shorter than the way to a wrong answer",
    )


class Controls(Record):
    nothing: Rate = Field(description="zero perturbation: must be zero on valid flips")
    random_direction: Rate = Field(description="random direction of the attack's own norm")
    wrong_target: Rate = Field(description="same attack and budget, towards a wrong answer")


class Drift(Record):
    """How far the defended latents moved from where the defense put them, in one scope."""

    relative_l2: Mean = Field(description="|z - z0| / |z0|; examples with |z0| = 0 left out")
    l2: Mean
    linf: Mean
    decode_l2: Mean = Field(description="|(z - z0) W_dec|")
    decode_relative: Mean
    floor_violation: Mean = Field(description="|relu(z0 - z)| / |z0|")
    reactivated_fraction: Mean = Field(description="z > 0 among latents with z0 <= 0")
    preactivation_linf: Mean = Field(description="max |p - p0|: sees below the threshold")


class Constraint(Record):
    """How strictly the attack kept the defended latents in place, by construction."""

    kind: Literal["none", "exact", "first-order"]
    rank: Count = Field(description="dimensions of the residual stream that are forbidden")
    note: str = ""


class PerturbationKind(Record):
    """What the attack changes: the residual stream, or the prompt by a suffix."""

    kind: Literal["residual", "tokens", "embeddings", "several"] = "residual"
    length: Count | None = Field(default=None, description="tokens of the suffix")


class SuiteMember(Record):
    """One attack of a suite, on the flips that those before it left unbroken."""

    attack: str
    tried: Count
    broken: Count = Field(description="recovered inside the constraint limits")
    flops: Count


class Detection(Record):
    """What a defense's detector rings on; prompts ring if one of their tokens does."""

    stated: Share = Field(description="undisturbed prompts that may ring, as calibrated")
    false_alarms: Rate = Field(description="evaluation prompts that ring undisturbed")
    attacked: Rate = Field(description="perturbed prompts that ring")
    recovered: Rate = Field(description="... among those whose behaviour came back")


class SideEffects(Record):
    retain_n: Count
    retain_accuracy_clean: Share | None
    retain_accuracy_defended: Share | None = Field(
        description="among retain examples that the clean model gets right"
    )
    kl: Finite | None = Field(description="mean KL(clean || defended) per neutral token, nats")
    ce_increase: Finite | None = Field(description="cross-entropy on neutral text, nats/token")
    figures: dict[str, Finite] = Field(
        default_factory=dict, description="what only this task reports"
    )


class Cost(Record):
    """Work done; FLOPs are counted from matrix products, forward and backward."""

    forward: Count = Field(description="forward passes, in sequence rows")
    backward: Count = Field(description="backward passes, in sequence rows")
    token_layers: Count = Field(description="tokens times blocks run forward")
    flops: Count
    seconds: Finite
    peak_bytes: Count | None = Field(
        description="most memory in use at once, all accelerators together; null on the CPU"
    )


class Compute(Record):
    """Work, and what stayed in memory meanwhile: it is part of every `peak_bytes`."""

    attack: Cost
    scoring: Cost
    model_bytes: Count | None = Field(default=None, description="weights of the model")
    dictionary_bytes: Count | None = Field(
        default=None, description="what of the defended SAEs was kept where the model is"
    )


class Row(Record):
    """One (target, task, defense, attack) under one threat model."""

    task: str
    target: str
    defense: str
    attack: str
    threat_model: ThreatModel
    budget: Finite = Field(description="largest norm of the delta")
    budget_unit: BudgetUnit = Field(
        default="relative", description="relative to the defended residual's norm, or absolute"
    )
    seed: int
    features: dict[str, tuple[int, ...]] = Field(description="defended latents per site")
    examples: Examples
    recovery: Rate
    constrained: Constrained
    base_like: Rate
    fidelity: Mean
    curve: Curve
    controls: Controls
    constraint: Constraint
    drift: dict[str, Drift] = Field(description="scopes: perturbed, readout, later")
    figures: dict[str, Mean] = Field(description="what only this task reports")
    detection: Detection | None = Field(default=None, description="for a defense with a detector")
    zero_reactivation: Rate = Field(description="recovered and no eligible latent switched on")
    norm: Mean = Field(description="relative norm of the delta; null for tokens")
    perturbation: PerturbationKind = PerturbationKind()
    suite: tuple[SuiteMember, ...] = Field(default=(), description="in the order of their turns")
    side_effects: SideEffects
    compute: Compute
    flags: tuple[str, ...] = ()


class Provenance(Record):
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


class RunResult(Record):
    """`result.json`."""

    schema_version: int = SCHEMA_VERSION
    status: Literal["partial", "complete"]
    identity: str
    spec: dict[str, Any]
    provenance: Provenance
    rows: tuple[Row, ...]


class Texts(Record):
    """One line of `texts.jsonl`, written only on request: what was asked and what was said."""

    task: str
    id: str
    prompt: str
    clean: str
    defended: str
    recovered: str = Field(description="at the headline budget, whether it counts or not")


class ExampleRow(Record):
    """One line of `examples.jsonl`: ids and figures, no text."""

    task: str
    attack: str = Field(description="of a suite, the one whose perturbation this is")
    id: str
    cluster: str
    recovered: bool
    constrained: bool
    base_like: bool
    fidelity: Finite
    objective_clean: Finite
    objective_defended: Finite
    objective_recovered: Finite
    relative_norm: Finite | None
    smallest_norm: Finite | None
    smallest_norm_wrong: Finite | None
    flops: Finite = Field(default=0, description="spent on it by the search")
    flops_recovers: Finite | None = Field(
        default=None, description="... when its objective was first reached; null if it never was"
    )
    drift: dict[str, dict[str, float | None]]
