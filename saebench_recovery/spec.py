"""What a run is, and its identity: a hash of everything that changes its numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from saebench_recovery.base.hashing import hash_text
from saebench_recovery.base.settings import canonical_json

ThreatModel = Literal["reclamp", "post"]
BudgetUnit = Literal["relative", "absolute"]
Dtype = Literal["float32", "bfloat16"]

# Preset budgets of the recovery curve, relative to the defended residual's norm.
CURVE_BUDGETS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
LARGEST_RELATIVE = 10


class Limits(BaseModel):
    """How far a constrained recovery may drift in any scope, and what counts as base-like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drift: float = Field(default=0.05, ge=0, allow_inf_nan=False, description="relative, latents")
    decode: float = Field(default=0.05, ge=0, allow_inf_nan=False, description="relative, decoded")
    fidelity: float = Field(
        default=0.8, ge=0, le=1, description="least fidelity of a base-like recovery"
    )


class RunSpec(BaseModel):
    """One defense against one attack on one or more tasks of a target.

    `defense_config`, `attack_config` and `task_config` are what the user said; the run writes
    the resolved configurations (with the target's own defaults) into the result. `flops` is what
    the search may spend on each problem (a flip at one budget), so that attacks get the same.
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
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    budget_unit: BudgetUnit = "relative"
    limits: Limits = Limits()
    seed: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    protocol: str | None = None
    force_sae: bool = False
    dtype: Dtype | Literal["auto"] = "auto"
    flops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # Everything below changes speed, not numbers (up to float rounding), so it is not identity.
    device: str = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _budget_fits_its_unit(self) -> Self:
        if self.budget_unit == "relative" and self.budget > LARGEST_RELATIVE:
            raise ValueError(
                f"budget is {self.budget:g} times the residual's norm; at most "
                f"{LARGEST_RELATIVE}, or give the norm itself with budget unit absolute"
            )
        return self


NOT_IDENTITY = frozenset({"device", "batch_size"})
# In the identity as resolved per task, or in the target's hash, so that naming a default does not
# make another run.
RESOLVED = frozenset({"defense_config", "attack_config", "task_config", "dtype"})
IDENTITY = frozenset(
    {
        "target",
        "tasks",
        "defense",
        "attack",
        "threat_model",
        "budget",
        "budget_unit",
        "limits",
        "seed",
        "limit",
        "protocol",
        "force_sae",
        "flops",
    }
)


def identity(spec: RunSpec, resolved: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Hash (16 hex digits) of everything that changes a run's numbers.

    `resolved` holds what each task was really set up with, `environment` the hashes and versions
    of the target, the plugins' sources and the harness.
    """
    said = spec.model_dump(mode="json", include=set(IDENTITY))
    everything = {"spec": said, "resolved": resolved, "environment": environment}
    return hash_text(canonical_json(everything))[:16]


def command(spec: RunSpec, plugins: Iterable[str] = ()) -> str:
    """The command line that repeats a run, defaults left out except for what is compared."""
    words = ["saebench", "run", "--target", spec.target]
    for task in spec.tasks:
        words += ["--task", task]
    words += ["--defense", spec.defense, "--attack", spec.attack]
    words += ["--threat-model", spec.threat_model, "--budget", str(spec.budget)]
    if spec.budget_unit != "relative":
        words += ["--budget-unit", spec.budget_unit]
    words += ["--seed", str(spec.seed)]
    if spec.protocol is not None:
        words += ["--protocol", spec.protocol]
    if spec.dtype != "auto":
        words += ["--dtype", spec.dtype]
    if spec.force_sae:
        words += ["--force-sae"]
    if spec.limit is not None:
        words += ["--limit", str(spec.limit)]
    if spec.flops is not None:
        words += ["--flops", str(spec.flops)]
    if spec.limits != Limits():
        words += ["--max-drift", str(spec.limits.drift), "--max-decode", str(spec.limits.decode)]
        words += ["--min-fidelity", str(spec.limits.fidelity)]
    for option, settings in (
        ("-D", spec.defense_config),
        ("-A", spec.attack_config),
        ("-T", spec.task_config),
    ):
        for key, value in settings.items():
            words += [option, f"{key}={canonical_json(value)}"]
    for file in plugins:
        words += ["--plugin", file]
    return shlex.join(words)
