"""`relearn`: the behaviour is trained back into the weights, on other examples of it.

Relearning attacks (arXiv 2409.18025, on finetuning; arXiv 2402.16835, on relearning): a few steps
on data of the behaviour undo what was taken away. Here the weights are adapted at low
rank (LoRA, arXiv 2106.09685) with the defense active throughout.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Attack, Example, PluginConfig
from saebench_recovery.model.meter import note_twofold
from saebench_recovery.model.weights import inputs_first, matrices
from saebench_recovery.perturbations.low_rank import RANK, Factors, LowRank, LowRankChange
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.weights import Spent
from saebench_recovery.registry import register_attack

HALVINGS = 6  # stages: after all steps, half of them, and so on


@register_attack("relearn")
class Relearn(Attack):
    """LoRA on selection examples; nothing that is scored is trained on.

    The wrong answers of the same examples are learned as the right ones are, in changes of their
    own. Stages on the way show how recovery grows with the steps.
    """

    space = "low-rank"

    class Config(PluginConfig):
        steps: int = Field(default=64, ge=1, le=100_000, description="of training")
        batch: int = Field(default=16, ge=1, le=4096, description="examples in a step")
        lr: float = Field(default=2e-3, gt=0, le=1, description="of AdamW")
        rank: int = Field(default=4, ge=1, le=RANK, description="of the change to each matrix")

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self._learned: dict[Any, Factors] = {}

    def search(self, problem: Problem) -> LowRankChange:
        space = LowRank.of(problem)
        return space.change([self._factors(problem, space, own) for own in space.lessons])

    def _factors(self, problem: Problem, space: LowRank, lessons: tuple[Example, ...]) -> Factors:
        """What is learned from lessons, once for all flips."""
        key = (space.active.target, lessons)
        if key not in self._learned:
            found = Factors()
            for stage in self._stages(problem, space, lessons):
                found = stage if not found.spent else found.joined(stage)
            self._learned[key] = found
        return self._learned[key]

    def _stages(
        self, problem: Problem, space: LowRank, lessons: tuple[Example, ...]
    ) -> Iterator[Factors]:
        steps = self.config.steps
        stages = {max(1, steps >> halved) for halved in range(HALVINGS + 1)}
        active = space.active.on_a_copy()
        trained = _with_adapters(active.target.model, self.config.rank, space.seed)
        optimiser = torch.optim.AdamW(trained, lr=self.config.lr, weight_decay=0.0)
        drawn, before, tokens = random.Random(space.seed), problem.flops, 0
        with torch.enable_grad():
            for step in range(1, steps + 1):
                some = drawn.sample(lessons, min(self.config.batch, len(lessons)))
                loss, read = space.loss(active, some)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                tokens += read
                spent = problem.flops - before
                paid = problem.allowance is None or spent < problem.allowance * problem.size
                if step in stages or not paid:
                    yield _learned(active.target.model, Spent(step, tokens, spent))
                if not paid:
                    return


def _with_adapters(model: torch.nn.Module, rank: int, seed: int) -> list[Tensor]:
    """Put LoRA into a model's blocks; the parameters to train.

    Raises:
        UserError: `peft` is not installed, or the model has no weights that can be adapted.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            f"relearn trains with peft, which does not import ({error}); "
            "pip install 'saebench-recovery[finetune]'"
        ) from None
    chosen = matrices(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[name.removesuffix(".weight") for name in chosen],
        fan_in_fan_out=any(map(inputs_first, chosen.values())),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for _, layer in _adapters(model):
        layer.forward = partial(_adapted, layer.base_layer, *_thin_and_wide(layer))
    trained: list[Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:  # steps would be lost in a coarser precision
        weight.data = weight.data.float()
    return trained


def _adapted(base: torch.nn.Module, thin: Tensor, wide: Tensor, x: Tensor) -> Tensor:
    """A layer's output with what its factors add, which has a scale of 1."""
    # The thin factors have gradients of their own, beside those of what they are given.
    note_twofold(2.0 * (x.numel() // x.shape[-1]) * (thin.numel() + wide.numel()))
    return cast(Tensor, _WithFactors.apply(base(x), x, thin, wide))  # type: ignore[no-untyped-call]


class _WithFactors(torch.autograd.Function):
    """`output` [..., O] and `x` [..., I] through both factors, added up in the factors' precision.

    Made of small operations it takes several times as many passes over the tokens.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, thin: Tensor, wide: Tensor) -> Tensor:
        x = x.to(thin.dtype)
        seen = x @ thin.T
        ctx.save_for_backward(x, seen, thin, wide)
        return (output + seen @ wide.T).to(output.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        x, seen, thin, wide = ctx.saved_tensors
        grad = grads[0].to(wide.dtype).flatten(0, -2)
        back = grad @ wide
        to_x = None
        if ctx.needs_input_grad[1]:
            to_x = (back @ thin).view(x.shape).to(grads[0].dtype)
        return grads[0], to_x, back.T @ x.flatten(0, -2), grad.T @ seen.flatten(0, -2)


@torch.no_grad()
def _learned(model: torch.nn.Module, spent: Spent) -> Factors:
    """What the adapters add to each weight, in the weight's own layout."""
    up, down = {}, {}
    for name, layer in _adapters(model):
        thin, wide = _thin_and_wide(layer)
        wide = wide * layer.scaling["default"]
        first, second = (thin.T, wide.T) if inputs_first(layer.base_layer) else (wide, thin)
        up[name], down[name] = first[None].clone(), second[None].clone()
    return Factors(up, down, (spent,))


def _thin_and_wide(layer: Any) -> tuple[Tensor, Tensor]:
    """The factors of an adapted layer, [rank, inputs] and [outputs, rank]."""
    thin, wide = (layer.get_submodule(f"lora_{which}.default").weight for which in "AB")
    return thin, wide


def _adapters(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            yield f"{name}.weight", module
