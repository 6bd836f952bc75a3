"""A model whose blocks lie on two devices does what it does on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from saebench_recovery.defenses.clamp import Clamp

from saebench_recovery import registry
from saebench_recovery.base.catalogue import Kind
from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Attack, Defense, Example
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.generation import continued
from saebench_recovery.model.hooks import blocks
from saebench_recovery.schema import Row
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.hub import SHARDED, load_model
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import preset
from saebench_recovery.targets.target import Target
from tests.devices import FIRST, SECOND, simulated_devices
from tests.journal import score
from tests.tiny import LAYERS, TinyTask, tiny_model, tiny_target


def split(architecture: str) -> Target:
    """Embedding and the first blocks on one device, all else on the other."""
    model: Any = tiny_model(architecture)
    base, prefix = model.base_model, model.base_model_prefix
    places: dict[str, str] = {}
    late = False
    for name, child in base.named_children():
        if child is blocks(model):
            late = True
            for layer in range(LAYERS):
                places[f"{prefix}.{name}.{layer}"] = FIRST if layer < LAYERS // 2 else SECOND
        else:
            places[f"{prefix}.{name}"] = SECOND if late and "rotary" not in name else FIRST
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    (head,) = (name for name, child in model.named_children() if child is not base)
    places[head] = FIRST if tied else SECOND
    return tiny_target(architecture, model=dispatch_model(model, places, main_device=FIRST))


def row(target: Target, defense: str, attack: str) -> Row:
    quick = {"latents": 8, "steps": 2, "length": 2, "candidates": 4}

    def made(kind: Kind, name: str) -> Any:
        fields = type(registry.create(kind, name, {}).config).model_fields
        return registry.create(kind, name, {k: v for k, v in quick.items() if k in fields})

    defending, attacking = made("defense", defense), made("attack", attack)
    assert isinstance(defending, Defense)
    assert isinstance(attacking, Attack)
    spec = RunSpec(limit=6, budget=0.5)
    return score(target, TinyTask(), defending, attacking, spec).row


PAIRS = [
    ("gpt2", "clamp", "orthogonal"),
    ("llama", "trajectory", "jacobian"),
    ("gemma2", "reconstruction", "soft-suffix"),
    ("gemma3", "residual-monitor", "gcg"),
]


@pytest.mark.parametrize(("architecture", "defense", "attack"), PAIRS)
def test_a_run_over_two_devices_is_that_on_one(
    architecture: str, defense: str, attack: str
) -> None:
    with simulated_devices():
        target = split(architecture)
        assert target.devices == (FIRST, SECOND)
        found = row(target, defense, attack)
    wanted = row(tiny_target(architecture), defense, attack)
    assert found.examples.valid > 0
    assert found.compute.model_bytes == wanted.compute.model_bytes
    same = leaves(wanted.model_dump(exclude={"compute"}))
    for path, value in leaves(found.model_dump(exclude={"compute"})).items():
        number = isinstance(value, float)
        assert value == (pytest.approx(same[path], 1e-3, 1e-5) if number else same[path]), path


@pytest.mark.parametrize("architecture", ["neox", "qwen2"])
def test_writing_over_two_devices_is_that_on_one(architecture: str) -> None:
    def said(target: Target) -> list[tuple[int, ...]]:
        prompts = [example.prompt for example in TinyTask().examples(target, "evaluation")[:4]]
        examples = [Example("", prompt, ((0,),)) for prompt in prompts]
        clamp = Clamp(Clamp.Config(latents=8, multiplier=0.3))
        clamp.fit(target, TinyTask())
        return continued(DefendedModel(target, clamp), examples, 9)

    with simulated_devices():
        found = said(split(architecture))
    assert found == said(tiny_target(architecture))


def test_simulated_devices_do_not_mix() -> None:
    with simulated_devices():
        here, there = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
        assert (here + there.to(FIRST)).tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="aten::add over tensors on lazy:0, lazy:1"):
            here + there


def test_nothing_to_spread_over() -> None:
    with pytest.raises(UserError, match="sharded' is all accelerators, and there is none"):
        load_target("organism", "sharded")
    with pytest.raises(UserError, match="larger than the memory of all accelerators; try --dtype"):
        load_model(preset("organism"), SHARDED)  # onto the CPU: it is not spread over that


def test_a_model_that_does_not_fit_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(UserError, match=r"larger than the device's memory; .* --device sharded"):
        load_model(preset("organism"))


def leaves(record: Any, path: str = "") -> dict[str, Any]:
    """All values of nested records, by their paths."""
    if not isinstance(record, dict | tuple | list):
        return {path: record}
    pairs = record.items() if isinstance(record, dict) else enumerate(record)
    return {k: v for key, value in pairs for k, v in leaves(value, f"{path}/{key}").items()}
