"""A stand-in for the engine: instant, deterministic, and counted. No model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from saebench_recovery import plan, registry
from saebench_recovery.interfaces import Example, Split, Task
from saebench_recovery.schema import (
    Compute,
    Constrained,
    Constraint,
    Controls,
    Cost,
    Curve,
    CurvePoint,
    Drift,
    ExampleRow,
    Examples,
    Mean,
    Rate,
    Row,
    SideEffects,
)
from saebench_recovery.specs import Limits, RunSpec
from saebench_recovery.target.presets import Preset, TaskPreset

TASKS = ("alpha", "beta", "gamma")
SITE = "blocks.1.hook_resid_post"
PRESET = Preset(
    description="a fake",
    model="nowhere/model",
    saes={SITE: "nowhere/sae"},
    tasks={
        "alpha": TaskPreset(site=SITE, defenses={"clamp": {"latents": 7}}),
        "beta": TaskPreset(site=SITE),
        "gamma": TaskPreset(site=SITE),
    },
)


class FakeTask(Task):
    def examples(self, target: Any, split: Split) -> Sequence[Example]:
        return [Example(f"{self.name}/{split}", (0, 1), ((1,), (2,)))]

    def attribution(self, target: Any, site: Any) -> torch.Tensor:
        raise AssertionError("the fake engine fits nothing")


def rate(k: int, n: int = 100) -> Rate:
    if n == 0:
        return Rate(k=0, n=0, rate=None, low=None, high=None)
    return Rate(k=k, n=n, rate=k / n, low=max(0.0, k / n - 0.05), high=min(1.0, k / n + 0.05))


def mean(value: float | None, n: int = 100) -> Mean:
    return Mean(n=n, mean=value, median=value, max=value, low=value, high=value)


def row(task: str = "alpha", constrained: int = 80, valid: int = 100, **changes: Any) -> Row:
    """A row of a defense that gives way in `constrained` of `valid` flips."""
    some = rate(constrained, valid)
    figure = mean(0.5 if valid else None, valid)
    cost = Cost(forward=1, backward=1, token_layers=1, flops=10, seconds=0.5, peak_bytes=None)
    made = Row(
        task=task,
        target="organism",
        defense="clamp",
        attack="orthogonal",
        threat_model="reclamp",
        budget=0.25,
        seed=0,
        features={SITE: (1, 2)},
        examples=Examples(n=120, base=110, valid=valid, clusters=valid),
        recovery=some,
        constrained=Constrained(**some.model_dump(), limits=Limits()),
        base_like=some,
        fidelity=figure,
        curve=Curve(
            points=(CurvePoint(budget=0.25, recovery=some, wrong_target=some),),
            median_norm_recovers=None,
            median_norm_injects=None,
        ),
        controls=Controls(nothing=rate(0, valid), random_direction=some, wrong_target=some),
        constraint=Constraint(kind="exact", rank=2),
        drift={"perturbed": Drift(**dict.fromkeys(Drift.model_fields, figure))},
        figures={},
        zero_reactivation=some,
        norm=figure,
        side_effects=SideEffects(
            retain_n=0,
            retain_accuracy_clean=None,
            retain_accuracy_defended=None,
            kl=0.1,
            ce_increase=0.1,
        ),
        compute=Compute(attack=cost, scoring=cost),
    )
    return made.model_copy(update=changes)


def example_row(task: str, id: str) -> ExampleRow:
    return ExampleRow(
        task=task,
        attack="orthogonal",
        id=id,
        cluster="",
        recovered=True,
        constrained=True,
        base_like=True,
        fidelity=1,
        objective_clean=1,
        objective_defended=-1,
        objective_recovered=1,
        relative_norm=0.2,
        smallest_norm=None,
        smallest_norm_wrong=None,
        drift={},
    )


class Engine:
    """Records what was evaluated; `before` may interrupt it."""

    def __init__(self, before: Callable[[str], None] = lambda task: None) -> None:
        self.evaluated: list[str] = []
        self.before = before

    def evaluate(
        self, target: Any, task: Any, defense: Any, attack: Any, spec: RunSpec, advance: Any
    ) -> Any:
        self.before(task.name)
        advance("pretending", 0, 1)
        self.evaluated.append(task.name)
        scored = row(
            task.name,
            defense=defense.name,
            attack=attack.name,
            threat_model=spec.threat_model,
            budget=spec.budget,
            seed=spec.seed,
        )
        return SimpleNamespace(
            row=scored,
            examples=[example_row(task.name, f"{task.name}/{i}") for i in range(100)],
            perturbations={"delta": torch.full((100, 8), float(len(task.name)))},
        )

    def install(self, set: Callable[[Any, Any, Any], None]) -> None:
        """Take the place of the real engine; `set(mapping, key, value)` may be undone later."""
        scoring, loading = ModuleType("evaluate"), ModuleType("loading")
        target = SimpleNamespace(preset=PRESET, device="cpu", dtype=torch.float32)
        scoring.evaluate = self.evaluate  # type: ignore[attr-defined]
        loading.load_target = lambda name, device: target  # type: ignore[attr-defined]
        set(sys.modules, "saebench_recovery.scoring.evaluate", scoring)
        set(sys.modules, "saebench_recovery.target.loading", loading)
        set(vars(plan), "preset", lambda name: PRESET)
        for name in TASKS:
            task = type(f"Fake{name}", (FakeTask,), {"name": name, "__module__": __name__})
            set(registry._registered["task"], name, task)
