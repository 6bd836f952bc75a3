"""A stand-in for the engine: instant, deterministic, and counted. No model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch
from pydantic import BaseModel

from saebench_recovery.interfaces import Example, Split, Task
from saebench_recovery.schema import (
    BaseExample,
    Drift,
    ExampleCounts,
    Examples,
    Facts,
    Flag,
    Level,
    Mean,
    PerturbationKind,
    Provenance,
    Rate,
    Record,
    Row,
    RunResult,
    RunState,
    SideEffects,
    StoredChunk,
)
from saebench_recovery.scoring.measures import MEASURES, Seen
from saebench_recovery.spec import RunSpec
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


def made(model: type[Model], **given: Any) -> Model:
    """A record with the given fields, and a dull valid value in every other required one."""
    fields = model.model_fields.items()
    dull = {name: _dull(field.annotation) for name, field in fields if field.is_required()}
    return model.model_validate({**dull, **given})


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
    """A row of a defense that gives way in `constrained` of `valid` flips.

    `changes` are fields, or measures by name; of a rate that is not named half is true.
    """
    number = mean(0.5 if valid else None, valid)
    measures = {m.name: number if m.kind == "mean" else rate(valid // 2, valid) for m in MEASURES}
    measures["recovery"] = measures["constrained"] = rate(constrained, valid)
    measures |= {name: changes.pop(name) for name in measures if name in changes}
    standard = {
        "task": task,
        "target": "organism",
        "defense": "clamp",
        "attack": "orthogonal",
        "budget": 0.25,
        "examples": made(Examples, n=120, base=110, valid=valid, clusters=valid),
        "measures": measures,
        "under_attack": rate(constrained, valid),
        "drift": {"perturbed": made(Drift, relative_l2=number)},
    }
    return made(Row, **{**standard, **changes})


def record(
    task: str = "alpha", id: str = "a", *, recovered: bool = False, **changes: Any
) -> Record:
    """A flip under `orthogonal`; `changes` are fields, or measures by name."""
    measures: dict[str, Any] = {m.name: 0.5 if m.kind == "mean" else False for m in MEASURES}
    measures["recovery"] = measures["constrained"] = recovered
    measures |= {name: changes.pop(name) for name in measures if name in changes}
    still = {"readout": {"relative_l2": 0.0, "preactivation_relative": 0.0}}
    standard = {
        "task": task, "attack": "orthogonal", "id": id, "measures": measures, "drift": still
    }  # fmt: skip
    return made(Record, **{**standard, **changes})


def seen(examples: int, **changes: Any) -> Seen:
    """What scoring saw of some flips: verdicts are false and numbers one half."""
    false_E, half_E = torch.zeros(examples, dtype=torch.bool), torch.full((examples,), 0.5)
    numbers = {"fidelity_E": half_E, "norm_E": half_E}
    tensors = dict.fromkeys((field.name for field in dataclasses.fields(Seen)), false_E)
    tensors["bound_E"] = ~false_E
    return Seen(**{**tensors, **numbers, **changes})


def side_effects(**changes: Any) -> SideEffects:
    """Of a defense that breaks little, 19 of 20 kept."""
    harmless = {"retain_n": 25, "retain_known": 20, "retain_kept": 19, "kl": 0.1}
    return made(SideEffects, **{**harmless, **changes})


def flag(name: str, level: Level = "caution", attack: str | None = None) -> Flag:
    return made(
        Flag, name=name, level=level, sentence=f"{name} is so", remedy="mend it", attack=attack
    )


def facts(*members: str, **changes: Any) -> Facts:
    """Facts of one attack, `orthogonal`, or of a suite of several members."""
    standard = {
        "task": "alpha",
        "attack": "suite" if members else "orthogonal",
        "members": members or ("orthogonal",),
        "member_flops": tuple(range(1, 1 + len(members))) or (1,),
        "budget": 0.25,
        "curve_budgets": (0.1, 0.25, 1.0),
        "examples": made(ExampleCounts, n=120, base=110, valid=100),
        "side_effects": side_effects(),
        "perturbation": PerturbationKind(kind="several" if members else "residual"),
    }
    return made(Facts, **{**standard, **changes})


def run_result(*rows: Row, **changes: Any) -> RunResult:
    """A complete run of some rows, as `show` reads it."""
    spec = {**RunSpec().model_dump(mode="json"), "target": "organism", "plugin_files": []}
    provenance = made(Provenance, device="cpu", dtype="float32", seconds=1)
    standard = {"status": "complete", "identity": "abc", "spec": spec, "provenance": provenance}
    return RunResult.model_validate({**standard, "rows": rows, **changes})


def write_run(
    folder: Path,
    result: RunResult,
    records: Sequence[Record],
    unsuppressed: Sequence[BaseExample] = (),
) -> Path:
    """Write what comparisons and leaderboards read of a run; its folder.

    `unsuppressed` are the base examples of each row that the defense does not flip.
    """
    folder.mkdir(parents=True)
    state = RunState(
        facts=tuple(facts(task=r.task, unsuppressed=tuple(unsuppressed)) for r in result.rows),
        **{**result.model_dump(exclude={"rows"}), "status": "complete"},
    )
    (folder / "run.json").write_text(state.model_dump_json())
    (folder / "result.json").write_text(result.model_dump_json())
    lines = [r.model_dump_json() + "\n" for r in records]
    (folder / "records.jsonl").write_text("".join(lines))
    end = len("".join(lines).encode())
    log = made(
        StoredChunk, records=len(lines), records_end=end, evidence="evidence/00000.safetensors"
    )
    (folder / "chunks.jsonl").write_text(log.model_dump_json() + "\n" if lines else "")
    return folder
