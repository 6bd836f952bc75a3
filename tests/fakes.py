"""A stand-in for the engine: instant, deterministic, and counted. No model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch
from pydantic import BaseModel

from saebench_recovery import registry
from saebench_recovery.interfaces import Example, Split, Task
from saebench_recovery.runs import plan
from saebench_recovery.schema import (
    Constrained,
    Drift,
    ExampleRow,
    Examples,
    Mean,
    Rate,
    Row,
    Texts,
)
from saebench_recovery.spec import Limits, RunSpec
from saebench_recovery.targets.presets import Preset, TaskPreset

Model = TypeVar("Model", bound=BaseModel)

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


def made(model: type[Model], **said: Any) -> Model:
    """A record with the given fields, and a dull valid value in every other required one."""
    fields = model.model_fields.items()
    dull = {name: _dull(field.annotation) for name, field in fields if field.is_required()}
    return model.model_validate({**dull, **said})


def _dull(annotation: Any) -> Any:
    if annotation is Rate:
        return rate(50)
    if annotation is Mean:
        return mean(0.5)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return made(annotation)
    if type(None) in get_args(annotation):
        return None
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    return (get_origin(annotation) or annotation)()  # 0, "", {} and so on


def row(task: str = "alpha", constrained: int = 80, valid: int = 100, **changes: Any) -> Row:
    """A row of a defense that gives way in `constrained` of `valid` flips."""
    some = rate(constrained, valid)
    figure = mean(0.5 if valid else None, valid)
    standard = {
        "task": task,
        "target": "organism",
        "defense": "clamp",
        "attack": "orthogonal",
        "budget": 0.25,
        "examples": made(Examples, n=120, base=110, valid=valid, clusters=valid),
        "recovery": some,
        "constrained": made(Constrained, **some.model_dump(), limits=Limits()),
        "fidelity": figure,
        "drift": {"perturbed": made(Drift, relative_l2=figure)},
    }
    return made(Row, **{**standard, **changes})


def example_row(task: str, id: str) -> ExampleRow:
    return made(ExampleRow, task=task, id=id)


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
            texts=[made(Texts, task=task.name, id=f"{task.name}/0", prompt="secret")],
        )

    def install(self, set: Callable[[Any, Any, Any], None]) -> None:
        """Take the place of the real engine; `set(mapping, key, value)` may be undone later."""
        scoring, loading = ModuleType("evaluate"), ModuleType("loading")
        target = SimpleNamespace(preset=PRESET, devices=("cpu",), dtype=torch.float32, commits={})
        scoring.evaluate = self.evaluate  # type: ignore[attr-defined]
        loading.load_target = lambda name, device, **_: target  # type: ignore[attr-defined]
        set(sys.modules, "saebench_recovery.scoring.evaluate", scoring)
        set(sys.modules, "saebench_recovery.targets.loading", loading)
        set(vars(plan), "preset", lambda *said: PRESET)
        for name in TASKS:
            task = type(f"Fake{name}", (FakeTask,), {"name": name, "__module__": __name__})
            set(registry._registered["task"], name, task)
