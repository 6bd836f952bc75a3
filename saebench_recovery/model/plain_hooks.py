"""Hook points of the reference engine: the modules of every supported architecture by their names.

Nothing is inferred from what a block happens to contain: inside the blocks of an architecture that
is not in the table there are no hook points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site

Replace = Callable[[Tensor], Tensor]  # activation [1, T, D] -> what takes its place


@dataclass(frozen=True)
class _Modules:
    """Where an architecture adds to the residual stream, and what reads it between the two.

    `attention` and `mlp` are the modules whose outputs are added, `second_norm` the one that reads
    the residual after attention.
    """

    attention: str
    second_norm: str
    mlp: str


_LLAMA = _Modules("self_attn", "post_attention_layernorm", "mlp")
_GEMMA = _Modules(
    "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
_MODULES = {
    "gpt2": _Modules("attn", "ln_2", "mlp"),
    "gpt_neox": _Modules("attention", "post_attention_layernorm", "mlp"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
}


@contextmanager
def replaced(model: Any, replacements: Mapping[Site, Replace]) -> Iterator[None]:
    """Put `replacement(activation)` in the place of the activation at each hook point.

    Raises:
        UserError: the architecture has no such hook point, as far as is known here.
    """
    with ExitStack() as stack:
        for site, replacement in sorted(replacements.items()):
            for handle in _hooks(model, site, replacement):
                stack.callback(handle.remove)
        yield


def _hooks(model: Any, site: Site, replacement: Replace) -> list[Any]:
    base = model.base_model
    block = (base.h if model.config.model_type == "gpt2" else base.layers)[site.layer]
    if site.kind == "hook_resid_pre":
        return [block.register_forward_pre_hook(_on_input(replacement))]
    if site.kind == "hook_resid_post":
        return [block.register_forward_hook(_on_output(replacement))]
    modules = _MODULES.get(model.config.model_type)
    if modules is None:
        raise UserError(
            f"the reference engine does not know the inside of {model.config.model_type!r} blocks, "
            f"so there is no {site}; it knows {', '.join(sorted(_MODULES))}"
        )
    if site.kind == "hook_resid_mid":
        return _middle(block, getattr(block, modules.second_norm), replacement)
    name = {"hook_attn_out": modules.attention, "hook_mlp_out": modules.mlp}[site.kind]
    return [getattr(block, name).register_forward_hook(_on_output(replacement))]


def _middle(block: nn.Module, second_norm: nn.Module, replacement: Replace) -> list[Any]:
    """The norm reads the replaced residual; the skip connection around it gets the difference."""
    if getattr(block, "use_parallel_residual", False):
        raise UserError("hook_resid_mid does not exist where attention and MLP run in parallel")
    differences: list[Tensor] = []

    def read(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = replacement(args[0])
        differences.append(changed - args[0])
        return (changed, *args[1:])

    return [
        second_norm.register_forward_pre_hook(read),
        block.register_forward_hook(_on_output(lambda resid: resid + differences.pop())),
    ]


def _on_input(replacement: Replace) -> Callable[..., Any]:
    return lambda _, args: (replacement(args[0]), *args[1:])


def _on_output(replacement: Replace) -> Callable[..., Any]:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (replacement(output[0]), *output[1:])
        return replacement(output)

    return hook
