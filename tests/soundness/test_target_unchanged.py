"""A target stays what was loaded, whatever fits on it or searches it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor
from torch.overrides import TorchFunctionMode

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Output, ResidualDelta, Task
from saebench_recovery.model.hooks import blocks
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.sae.activations import Threshold
from saebench_recovery.scoring.unchanged import changed, remember
from saebench_recovery.targets.target import Target
from tests.model.longest_row import by_longest_row
from tests.soundness.setting import FEW_LATENTS, clamp, orthogonal, run
from tests.tiny import SITES, TinyTask, tiny_target


def halves_a_weight(target: Target, defense: Clamp) -> None:
    next(target.model.parameters()).data.mul_(0.5)


def leaves_a_hook(target: Target, defense: Clamp) -> None:
    blocks(target.model)[-1].register_forward_hook(lambda *_: None)


def replaces_a_forward(target: Target, defense: Clamp) -> None:
    block: Any = blocks(target.model)[-1]
    block.forward = lambda hidden, *_, **__: hidden


def takes_another_epsilon(target: Target, defense: Clamp) -> None:
    last: Any = blocks(target.model)[-1]
    last.ln_2.eps = 10.0


def scales_positions(target: Target, defense: Clamp) -> None:
    """Buffers that no checkpoint holds."""
    for name, buffer in target.model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.mul_(0.5)


def turns_the_sae(target: Target, defense: Clamp) -> None:
    for latents in defense.latents.values():
        latents.dictionary.encoder_DM.copy_(latents.dictionary.encoder_DM.roll(1, 1))


def raises_a_threshold(target: Target, defense: Clamp) -> None:
    for latents in defense.latents.values():
        activation = latents.dictionary.activation
        assert isinstance(activation, Threshold)
        activation.threshold_M.add_(1.0)


def reads_by_itself(target: Target, defense: Clamp) -> None:
    for latents in defense.latents.values():
        vars(latents)["read"] = torch.zeros_like


def reads_the_whole_otherwise(target: Target, defense: Clamp) -> None:
    for latents in defense.latents.values():
        latents.dictionary.whole.columns_DS.mul_(2)


def shortens_neutral_texts(target: Target, defense: Clamp) -> None:
    assert isinstance(target.neutral_texts, list)
    del target.neutral_texts[1:]


def decodes_otherwise(target: Target, defense: Clamp) -> None:
    target.tokenizer.decode = lambda *_, **__: "I cannot help"


Change = Callable[[Target, Clamp], None]


class Changing(Clamp):
    """Changes something in fit that is not its own."""

    change: Change

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        type(self).change(target, self)


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("gpt2", halves_a_weight),
        ("gpt2", leaves_a_hook),
        ("gpt2", replaces_a_forward),
        ("gpt2", takes_another_epsilon),
        ("llama", scales_positions),
        ("gpt2", turns_the_sae),
        ("gpt2", raises_a_threshold),
        ("gpt2", reads_by_itself),
        ("gpt2", reads_the_whole_otherwise),
        ("gpt2", shortens_neutral_texts),
        ("gpt2", decodes_otherwise),
    ],
)
def test_a_defense_that_changes_the_target_is_refused(architecture: str, change: Change) -> None:
    made = type("Made", (Changing,), {"change": staticmethod(change)})
    with pytest.raises(UserError, match=r"changes the target in fit|read otherwise"):
        run(made(Clamp.Config(**FEW_LATENTS)), orthogonal(), target=tiny_target(architecture))


class WritesWeightsToo(TinyTask):
    """A task is fitted before the defense."""

    def fit(self, target: Target, site: Site) -> None:
        super().fit(target, site)
        next(target.model.parameters()).data.mul_(0.5)


def test_a_task_that_changes_the_target_is_refused() -> None:
    with pytest.raises(UserError, match="changes the target in fit"):
        run(clamp(), orthogonal(), task=WritesWeightsToo(), target=tiny_target("gpt2"))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_a_model_computes_anew_are_no_change(kind: str) -> None:
    model = by_longest_row(kind)
    target = tiny_target(kind, SITES[:1], model)
    remember(target)
    for length in (60, 24, 3):
        model(torch.arange(length)[None])
        assert changed(target) == []
    model.model.rotary_emb.original_inv_freq.mul_(0.5)
    assert changed(target)


class LeavesAHook(Orthogonal):
    def search(self, problem: Problem) -> ResidualDelta:
        blocks(problem._engine.active.target.model)[0].register_forward_hook(lambda *_: None)
        return super().search(problem)


class WritesWeights(Orthogonal):
    def search(self, problem: Problem) -> ResidualDelta:
        found = super().search(problem)
        list(problem._engine.active.target.model.parameters())[-1].data.add_(1e-3)
        return found


@pytest.mark.parametrize("cls", [LeavesAHook, WritesWeights])
def test_an_attack_that_changes_the_target_is_named(cls: type[Orthogonal]) -> None:
    attack = cls(Orthogonal.Config(steps=5))
    row = run(clamp(), attack, target=tiny_target("gpt2")).row
    assert ("target-changed", "invalid") in {(flag.name, flag.level) for flag in row.flags}


class AsksForHiddenStates(Clamp):
    """What a user's fit may do: the library then leaves hooks of its own on the model."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        example = task.examples(target, "selection")[0]
        target.model(torch.tensor([example.prompt]), output_hidden_states=True)


def test_asking_for_hidden_states_is_no_change() -> None:
    defense = AsksForHiddenStates(Clamp.Config(latents=4))
    assert "target-changed" not in run(defense, orthogonal()).row.flag_names


# --- what judges, and how torch calculates --------------------------------------------------


class Reversing(TorchFunctionMode):
    """Gives every gradient the other sign."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return tuple(-grad for grad in found) if func is torch.autograd.grad else found


def another_detector(task: Task) -> None:
    """On the task that scores, which the one that is handed out was made of."""
    (real,) = (
        cell.cell_contents.__self__
        for cell in vars(task)["examples"].__closure__
        if hasattr(cell.cell_contents, "__self__")
    )
    real.behaviour = partial(never, real)


def another_class(task: Task) -> None:
    cls: Any = type(task)
    cls.stopped = never


def never(task: Task, output: Output) -> Tensor:
    return torch.zeros(len(output.examples), dtype=torch.bool)


class Misjudged(TinyTask):
    """Its class may be written to."""


@pytest.mark.parametrize("change", [another_detector, another_class])
def test_a_defense_that_replaces_a_detector_is_refused(change: Callable[[Task], None]) -> None:
    class Replacing(Clamp):
        def fit(self, target: Target, task: Task) -> None:
            super().fit(target, task)
            change(task)

    with pytest.raises(UserError, match="in fit, which judges it"):
        run(Replacing(Clamp.Config(**FEW_LATENTS)), orthogonal(), task=Misjudged())


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad, Reversing, lambda: torch.autocast("cpu")]
)
def test_a_mode_of_torch_that_a_defense_leaves_on_is_refused(mode: Callable[[], Any]) -> None:
    entered = mode()

    class Entering(Clamp):
        def fit(self, target: Target, task: Task) -> None:
            super().fit(target, task)
            entered.__enter__()

    try:
        with pytest.raises(UserError, match=r"changes the target in fit \((the modes|what)"):
            run(Entering(Clamp.Config(**FEW_LATENTS)), orthogonal())
    finally:
        entered.__exit__(None, None, None)
