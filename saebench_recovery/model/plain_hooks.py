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

    `attention` and `mlp` are the modules whose outputs are added, `between` the one that reads the
    residual after attention: none where both read the same.
    """

    attention: str
    between: str | None
    mlp: str


_LLAMA = _Modules("self_attn", "post_attention_layernorm", "mlp")
_NORMED_OUTPUTS = _Modules("post_attention_layernorm", "mlp", "post_feedforward_layernorm")
_NORMED_TWICE = _Modules(
    "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
_NORMED_OUTPUTS_TOO = _Modules(
    "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"
)
_GPT2 = _Modules("attn", "ln_2", "mlp")
_LLAMA_LIKE = """
    arcee aria_text bitnet cwm dots1 ernie4_5 ernie4_5_moe exaone exaone_moe
    gemma glm glm4_moe granite helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 internlm3
    iquestcoder jais2 laguna llama mellum minimax_m2 minimax_m3_vl_text ministral ministral3 mistral
    mixtral nanochat nemotron olmo olmoe persimmon phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe
    sarvam_moe seed_oss smollm3 solar_open stablelm starcoder2
"""
_MODULES = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _Modules("attention", "post_attention_layernorm", "mlp"),
    "gptj": _Modules("attn", None, "mlp"),
    "codegen": _Modules("attn", None, "mlp"),
    "granitemoe": _Modules("self_attn", "post_attention_layernorm", "block_sparse_moe"),
    "afmoe": _Modules("post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"),
    "hyperclovax": _Modules("post_norm1", "post_attention_layernorm", "post_norm2"),
    "vaultgemma": _Modules("self_attn", "pre_feedforward_layernorm", "mlp"),
    **dict.fromkeys(_LLAMA_LIKE.split(), _LLAMA),
    **dict.fromkeys(("phi", "cohere", "cohere2"), _Modules("self_attn", None, "mlp")),
    **dict.fromkeys(
        ("apertus", "apertus1p5_text"), _Modules("self_attn", "feedforward_layernorm", "mlp")
    ),
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma4_unified_text"), _NORMED_TWICE),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4", "flex_olmo"), _NORMED_OUTPUTS),
    **dict.fromkeys(("glm4", "kolibri1"), _NORMED_OUTPUTS_TOO),
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
    blocks = getattr(base, "h", None) or base.layers
    if site.layer >= len(blocks):
        raise UserError(f"{site} does not exist: the model has {len(blocks)} blocks")
    block = blocks[site.layer]
    if site.kind == "hook_resid_pre":
        return [block.register_forward_pre_hook(_on_input(replacement))]
    if site.kind == "hook_resid_post":
        return [block.register_forward_hook(_on_output(replacement))]
    modules = _MODULES.get(model.config.model_type)
    if modules is None:
        raise UserError(
            f"the reference engine does not know the inside of {model.config.model_type!r} blocks, "
            f"so there is no {site}; use hook_resid_post"
        )
    if site.kind == "hook_resid_mid":
        return _middle(block, modules.between, replacement)
    name = {"hook_attn_out": modules.attention, "hook_mlp_out": modules.mlp}[site.kind]
    factor = getattr(model.config, "residual_multiplier", 1.0)
    return [getattr(block, name).register_forward_hook(_on_output(_scaled(factor, replacement)))]


def _scaled(factor: float, replacement: Replace) -> Replace:
    """What replaces a module's output, where `factor` times the output is added."""
    return replacement if factor == 1 else lambda output: replacement(output * factor) / factor


def _middle(block: nn.Module, between: str | None, replacement: Replace) -> list[Any]:
    """What reads the residual in between is given another; the skip connection, the difference."""
    if between is None or getattr(block, "use_parallel_residual", False):
        raise UserError("hook_resid_mid does not exist where attention and MLP run in parallel")
    differences: list[Tensor] = []

    def read(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = replacement(args[0])
        differences.append(changed - args[0])
        return (changed, *args[1:])

    return [
        getattr(block, between).register_forward_pre_hook(read),
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
