"""What a block adds to the residual stream: the modules whose outputs are added, and their factor.

Some blocks norm an output once more before it is added, and some multiply it. Found by the names
that architectures share; the check at load (`agreement.py`) holds what is found to the reference
engine, which has a table of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from saebench_recovery.base.errors import UserError

_ATTENTION = ("attn", "attention", "self_attn")
_MLP = ("mlp", "block_sparse_moe")
# Norms of an output, before it is added.
_ATTENTION_NORMS = ("post_self_attn_layernorm", "post_norm1")
_MLP_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2")
# With one of these a block norms the residual before its MLP, without `input_layernorm` nowhere:
# in both cases `post_attention_layernorm` norms an output and not the residual.
_BEFORE_MLP = ("pre_feedforward_layernorm", "pre_mlp_layernorm")
# What reads the residual after attention; a block without any runs attention and MLP in parallel.
_BETWEEN = (*_BEFORE_MLP, "post_attention_layernorm", "ln_2", "feedforward_layernorm", "mlp_norm")


@dataclass(frozen=True)
class Addend:
    """`factor` times the output of `module` is added to the residual stream."""

    module: nn.Module
    factor: float

    def of(self, output: Tensor) -> Tensor:
        """What is added, given the module's output."""
        return output if self.factor == 1 else output * self.factor

    def output(self, output: Tensor, added: Tensor) -> Tensor:
        """The module's output with which `added` is added."""
        if self.factor == 1:
            return added
        return output + (added - self.of(output)) / self.factor


def attention_addend(block: nn.Module) -> Addend:
    """What attention adds.

    Raises:
        UserError: the block's attention is known by none of the usual names.
    """
    norms: tuple[str, ...] = _ATTENTION_NORMS
    if _first(block, _BEFORE_MLP) or not _first(block, ("input_layernorm", "ln_1")):
        norms = (*norms, "post_attention_layernorm")
    return _addend(block, (*norms, *_ATTENTION), "hook_attn_out")


def mlp_addend(block: nn.Module) -> Addend:
    """What the MLP adds.

    Raises:
        UserError: the block's MLP is known by none of the usual names.
    """
    return _addend(block, (*_MLP_NORMS, *_MLP), "hook_mlp_out")


def check_sequential(block: nn.Module) -> None:
    """Refuse a block that has no residual between attention and MLP.

    Raises:
        UserError: they run in parallel.
    """
    if getattr(block, "use_parallel_residual", False) or _first(block, _BETWEEN) is None:
        raise UserError(
            f"hook_resid_mid does not exist in a {type(block).__name__}, where attention and MLP "
            "run in parallel"
        )


def _addend(block: nn.Module, names: tuple[str, ...], what: str) -> Addend:
    module = _first(block, names)
    if module is None:
        raise UserError(f"{what} is not known in a {type(block).__name__}; use hook_resid_post")
    return Addend(module, float(getattr(block, "residual_multiplier", 1.0)))


def _first(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    found = (getattr(block, name, None) for name in names)
    return next((module for module in found if isinstance(module, nn.Module)), None)
