"""Facts of a run on one task that no single flip holds: what a row needs beside its records."""

from __future__ import annotations

from pydantic import Field

from saebench_recovery.schema.finding import Finding
from saebench_recovery.schema.values import Count, Finite, Rate, Share, Stored
from saebench_recovery.spec import BudgetUnit, Limits, ThreatModel


class ExampleCounts(Stored):
    n: Count = Field(description="evaluation examples")
    base: Count = Field(description="the clean model shows the behaviour")
    valid: Count = Field(description="... and the defended model does not: valid flips")
    learned: Count = Field(description="valid flips that an attack learned from, not scored")
    chance: Finite | None = Field(
        default=None,
        description="base examples expected of a model that guesses; null where that is not known",
    )


class BaseExample(Stored):
    """An example on which the clean model shows the behaviour."""

    id: str
    cluster: str = Field(description="the source item; empty where the example stands alone")


class Examples(ExampleCounts):
    clusters: Count = Field(description="source items among the scored flips")


class PerturbationKind(Stored):
    """What the attack changes: the residual stream, the prompt, or the weights."""

    kind: str = Field(default="residual", description="a space, or `several` of a suite")
    length: Count | None = Field(default=None, description="tokens that are put into the prompt")
    elsewhere: bool = Field(
        default=False,
        description="at other positions than the task's or other hook points than the first "
        "defended one, by the attack's own choice: ranks are apart",
    )

    @property
    def of_weights(self) -> bool:
        """Whether the model's weights change: no limit on drift binds, and ranks are apart."""
        return self.kind in ("low-rank", "rounded")


class SideEffects(Stored):
    """What the defense does to behaviours and text that it should leave alone."""

    retain_n: Count = Field(description="retain examples")
    retain_known: Count = Field(description="... that the clean model gets right")
    retain_kept: Count = Field(description="... and the defended model too")
    kl: Finite | None = Field(description="mean KL(clean || defended) per neutral token, nats")
    ce_increase: Finite | None = Field(description="cross-entropy on neutral text, nats/token")
    figures: dict[str, Finite] = Field(
        default_factory=dict, description="what only this task reports"
    )

    @property
    def retained(self) -> float | None:
        """Share of what the clean model gets right that the defended model keeps."""
        return self.retain_kept / self.retain_known if self.retain_known else None


class Cost(Stored):
    """Work done; FLOPs are counted from matrix products, forward and backward."""

    forward: Count = Field(description="forward passes, in sequence rows")
    backward: Count = Field(description="backward passes, in sequence rows")
    token_layers: Count = Field(description="tokens times blocks run forward")
    flops: Count
    seconds: Finite
    peak_bytes: Count | None = Field(
        description="most memory in use at once, all accelerators together; null on the CPU"
    )


class Compute(Stored):
    """Work, and what stayed in memory meanwhile: it is part of every `peak_bytes`."""

    attack: Cost
    scoring: Cost
    model_bytes: Count | None = Field(default=None, description="weights of the model")
    dictionary_bytes: Count | None = Field(
        default=None, description="what of the defended SAEs was kept where the model is"
    )


class Spread(Stored):
    """How far the residuals of a site lie apart, on selection prompts."""

    value: Finite = Field(description="root mean square distance from their mean")
    massive: tuple[int, ...] = Field(
        description="dimensions left out, whose variance is far above the others'"
    )


class Facts(Stored):
    """One task of a run, fitted and attacked; `aggregate` makes its row from these and records."""

    task: str
    target: str
    defense: str
    attack: str
    threat_model: ThreatModel
    budget: Finite = Field(description="largest norm of the perturbation at any position")
    budget_unit: BudgetUnit
    spreads: dict[str, Spread] = Field(description="per perturbed site")
    curve_budgets: tuple[Finite, ...] = Field(
        description="budgets at which the curve is read; none where nothing has a norm"
    )
    limits: Limits
    seed: int
    features: dict[str, tuple[int, ...]] = Field(description="defended latents per site")
    held: dict[str, tuple[int, ...]] = Field(
        description="of those, the latents that the defense edits: what an attack has to keep"
    )
    examples: ExampleCounts
    unsuppressed: tuple[BaseExample, ...] = Field(
        description="base examples that the defense does not flip"
    )
    perturbation: PerturbationKind
    members: tuple[str, ...] = Field(description="the attacks of a suite in order; else the one")
    member_flops: tuple[Count, ...]
    failures: dict[str, str] = Field(
        default_factory=dict, description="of members that failed: the line"
    )
    side_effects: SideEffects
    stated_false_alarms: Share | None = Field(description="of a defense with a detector")
    false_alarms: Rate | None = Field(description="evaluation prompts that ring undisturbed")
    compute: Compute
    forced_sae: bool = Field(description="an SAE was read where its metadata do not place it")
    rounded: bool = Field(description="the model computes in less than float32")
    findings: tuple[Finding, ...] = Field(default=(), description="of the checks beforehand")
