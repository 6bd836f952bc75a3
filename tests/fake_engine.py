"""A stand-in for the engine: instant, deterministic, and counted. No model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from saebench_recovery import registry
from saebench_recovery.base.progress import Progress
from saebench_recovery.interfaces import Attack, Defense, Task
from saebench_recovery.runs import plan
from saebench_recovery.schema import Cost, Facts, Texts
from saebench_recovery.scoring.journal import Chunk, Journal
from saebench_recovery.spec import RunSpec
from tests.fakes import PRESET, TASKS, FakeTask, facts, made, record

CHUNKS, FLIPS = 4, 25  # chunks of a task, and flips of a chunk
SPENT = made(Cost, seconds=0.25)  # before any attack


def chunk(task: str, attack: str, number: int) -> Chunk:
    """A chunk as scoring makes it, with a secret among its texts."""
    ids = [f"{task}/{number * FLIPS + i}" for i in range(FLIPS)]
    cost = made(Cost, seconds=0.5)
    return Chunk(
        records=[record(task, id, recovered=i < 20, attack=attack) for i, id in enumerate(ids)],
        tensors={"delta": torch.full((FLIPS, 8), float(number))},
        metadata={"kind": "residual"},
        attacking=cost,
        scoring=cost,
        texts=[made(Texts, task=task, id=id, prompt="secret") for id in ids],
    )


@dataclass(frozen=True)
class Seen:
    """A fitted defense before any attack."""

    task: Task
    defense: Defense
    flips: Sequence[int] = tuple(range(CHUNKS * FLIPS))
    cost: Cost = SPENT


class Engine:
    """Counts what was evaluated; `before` is told of each chunk and may interrupt it."""

    def __init__(self, before: Callable[[str, int], None] = lambda task, number: None) -> None:
        self.evaluated: list[str] = []
        self.fitted: list[tuple[str, str]] = []  # tasks with their defenses
        self.loaded: list[str] = []  # targets
        self.chunks: list[tuple[str, int]] = []
        self.before = before

    def undisturbed(self, setting: Any, progress: Progress) -> Seen:
        self.fitted.append((setting.task.name, setting.defense.name))
        return Seen(setting.task, setting.defense)

    def attacked(
        self, seen: Any, attack: Attack, spec: RunSpec, journal: Journal, progress: Progress
    ) -> Facts:
        task, defense = seen.task, seen.defense
        for number in range(len(journal.written(task.name, attack.name)), CHUNKS):
            self.before(task.name, number)
            progress("pretending", number, CHUNKS)
            journal.append(task.name, attack.name, chunk(task.name, attack.name, number))
            self.chunks.append((task.name, number))
        self.evaluated.append(task.name)
        return facts(
            task=task.name,
            target="organism",
            defense=defense.name,
            attack=attack.name,
            members=(attack.name,),
            member_flops=(0,),
            threat_model=spec.threat_model,
            budget=spec.budget,
            budget_unit=spec.budget_unit,
            limits=spec.limits,
            seed=spec.seed,
        )

    def install(self, set: Callable[[Any, Any, Any], None]) -> None:
        """Take the place of the real engine; `set(mapping, key, value)` may be undone later."""
        target = SimpleNamespace(
            preset=PRESET,
            device="cpu",
            devices=("cpu",),
            dtype=torch.float32,
            commits={},
            agreement=None,
            model_bytes=0,
            asked=(),
        )

        def load_target(name: str, device: str, **options: Any) -> Any:
            self.loaded.append(name)
            return target

        def asked_at(target: Any, sites: Sequence[Any]) -> Any:
            return target

        def remember(target: Any) -> None:
            """There is no model whose weights could be changed."""

        for module, *functions in (
            ("scoring.evaluate", self.attacked),
            ("scoring.undisturbed", self.undisturbed),
            ("scoring.unchanged", remember),
            ("targets.loading", load_target, asked_at),
        ):
            fake = ModuleType(module)
            vars(fake).update({function.__name__: function for function in functions})
            set(sys.modules, f"saebench_recovery.{module}", fake)
        set(vars(plan), "preset", lambda *options: PRESET)
        for name in TASKS:
            task = type(f"Fake{name}", (FakeTask,), {"name": name, "__module__": __name__})
            set(registry._registered["task"], name, task)
