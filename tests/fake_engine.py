"""A stand-in for the engine: instant, deterministic, and counted. No model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from saebench_recovery import registry
from saebench_recovery.base.progress import Progress
from saebench_recovery.interfaces import Attack, Defense, Example, Split, Task
from saebench_recovery.runs import plan
from saebench_recovery.schema import Cost, ExampleCounts, Facts, PerturbationKind, Record, Texts
from saebench_recovery.scoring.journal import Chunk, Journal
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.presets import Preset, TaskPreset
from tests.fakes import made, row

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
CHUNKS, FLIPS = 4, 25  # chunks of a task, and flips of a chunk


class FakeTask(Task):
    def examples(self, target: Any, split: Split) -> Sequence[Example]:
        return [Example(f"{self.name}/{split}", (0, 1), ((1,), (2,)))]

    def attribution(self, target: Any, site: Any) -> torch.Tensor:
        raise AssertionError("the fake engine fits nothing")


def chunk(task: str, attack: str, number: int) -> Chunk:
    """A chunk as scoring makes it, with a secret among its texts."""
    ids = [f"{task}/{number * FLIPS + i}" for i in range(FLIPS)]
    cost = made(Cost, seconds=0.5)
    return Chunk(
        records=[made(Record, task=task, attack=attack, id=id, cluster=id) for id in ids],
        tensors={"delta": torch.full((FLIPS, 8), float(number))},
        metadata={"kind": "residual"},
        attacking=cost,
        scoring=cost,
        texts=[made(Texts, task=task, id=id, prompt="secret") for id in ids],
    )


class Engine:
    """Counts what was evaluated; `before` is told of each chunk and may interrupt it."""

    def __init__(self, before: Callable[[str, int], None] = lambda task, number: None) -> None:
        self.evaluated: list[str] = []
        self.chunks: list[tuple[str, int]] = []
        self.before = before

    def evaluate(
        self,
        target: Any,
        task: Task,
        defense: Defense,
        attack: Attack,
        spec: RunSpec,
        journal: Journal,
        progress: Progress,
    ) -> Facts:
        for number in range(len(journal.written(task.name, attack.name)), CHUNKS):
            self.before(task.name, number)
            progress("pretending", number, CHUNKS)
            journal.append(task.name, attack.name, chunk(task.name, attack.name, number))
            self.chunks.append((task.name, number))
        self.evaluated.append(task.name)
        return made(
            Facts,
            task=task.name,
            target="organism",
            defense=defense.name,
            attack=attack.name,
            threat_model=spec.threat_model,
            budget=spec.budget,
            budget_unit=spec.budget_unit,
            limits=spec.limits,
            seed=spec.seed,
            examples=made(ExampleCounts, n=120, base=110, valid=CHUNKS * FLIPS),
            perturbation=PerturbationKind(kind="residual"),
        )

    def aggregate(self, facts: Facts, records: Sequence[Record]) -> Any:
        same = ("task", "defense", "attack", "threat_model", "budget", "seed")
        assert {record.task for record in records} == {facts.task}
        return row(valid=len(records), **{name: getattr(facts, name) for name in same})

    def install(self, set: Callable[[Any, Any, Any], None]) -> None:
        """Take the place of the real engine; `set(mapping, key, value)` may be undone later."""
        evaluate, aggregate, loading = map(ModuleType, ("evaluate", "aggregate", "loading"))
        target = SimpleNamespace(preset=PRESET, devices=("cpu",), dtype=torch.float32, commits={})
        vars(evaluate)["evaluate"] = self.evaluate
        vars(aggregate)["aggregate"] = self.aggregate
        vars(loading)["load_target"] = lambda name, device, **options: target
        set(sys.modules, "saebench_recovery.scoring.evaluate", evaluate)
        set(sys.modules, "saebench_recovery.scoring.aggregate", aggregate)
        set(sys.modules, "saebench_recovery.targets.loading", loading)
        set(vars(plan), "preset", lambda *options: PRESET)
        for name in TASKS:
            task = type(f"Fake{name}", (FakeTask,), {"name": name, "__module__": __name__})
            set(registry._registered["task"], name, task)
