"""The plain way to run an edited model, which shares nothing with the engine.

Each prompt is run by itself, whole, from its tokens, with transformers' own eager attention and
with hooks that name every module of every architecture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saebench_recovery.interfaces import Example

Edit = Callable[[Tensor], Tensor]  # residual [1, T, D] -> residual [1, T, D]


def plain_model(model: nn.Module) -> Any:
    """A copy with the same weights and transformers' own eager attention."""
    plain: Any = copy.deepcopy(model).eval().requires_grad_(False)
    plain.set_attn_implementation("eager")
    assert plain.config._attn_implementation == "eager"
    return plain


def plain_scores(model: Any, example: Example, edits: Mapping[str, Edit]) -> Tensor:
    """Scores [C] of an example's candidates: logits, or mean log-probabilities of longer ones."""
    if all(len(answer) == 1 for answer in example.candidates):
        logits_V = plain_logits(model, example.prompt, edits)[-1]
        return logits_V[[answer[0] for answer in example.candidates]]
    scores = []
    for answer in example.candidates:
        logits_TV = plain_logits(model, (*example.prompt, *answer), edits)
        logprobs_TV = logits_TV[len(example.prompt) - 1 : -1].log_softmax(-1)
        scores.append(logprobs_TV[range(len(answer)), answer].mean())
    return torch.stack(scores)


def plain_logits(model: Any, tokens: tuple[int, ...], edits: Mapping[str, Edit]) -> Tensor:
    """All logits [T, V] of one prompt."""
    with plain_hooks(model, edits):
        logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return logits


@contextmanager
def plain_hooks(model: Any, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Edit activations at hook points such as `blocks.1.hook_resid_post`."""
    handles = []
    for name, edit in edits.items():
        _, layer, kind = name.split(".")
        handles += _hooks(model, int(layer), kind, edit)
    yield
    for handle in handles:
        handle.remove()


def _hooks(model: Any, layer: int, kind: str, edit: Edit) -> list[Any]:
    architecture = type(model).__name__
    if architecture == "GPT2LMHeadModel":
        block = model.transformer.h[layer]
        attention, second_norm, mlp = block.attn, block.ln_2, block.mlp
    elif architecture == "GPTNeoXForCausalLM":
        block = model.gpt_neox.layers[layer]
        attention, second_norm, mlp = block.attention, None, block.mlp
    else:
        block = model.model.layers[layer]
        attention, second_norm, mlp = block.self_attn, block.post_attention_layernorm, block.mlp
        if architecture.startswith("Gemma"):
            attention = block.post_attention_layernorm
            second_norm = block.pre_feedforward_layernorm
            mlp = block.post_feedforward_layernorm
    if kind == "hook_resid_pre":
        return [block.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:]))]
    if kind == "hook_resid_mid":
        # The norm reads the edited residual, and the block's output receives the difference,
        # which by-passes norm and MLP on the skip connection.
        moved: list[Tensor] = []

        def read(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            changed = edit(args[0])
            moved.append(changed - args[0])
            return (changed,)

        return [
            second_norm.register_forward_pre_hook(read),
            block.register_forward_hook(lambda _, __, out: out + moved.pop()),
        ]
    module = {"hook_attn_out": attention, "hook_mlp_out": mlp, "hook_resid_post": block}[kind]
    return [module.register_forward_hook(lambda _, __, out: _first(edit, out))]


def _first(edit: Edit, output: Any) -> Any:
    return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)
