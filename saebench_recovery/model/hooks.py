"""Hook points on plain transformers modules, and starting a pass in the middle of the model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site

Edit = Callable[[Tensor], Tensor]

_BLOCKS = ("h", "layers")
_ATTENTION = ("attn", "attention", "self_attn")


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a causal language model.

    Raises:
        UserError: the architecture keeps them somewhere unknown.
    """
    base = model.base_model
    for name in _BLOCKS:
        found = getattr(base, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise UserError(
        f"{type(model).__name__} keeps its blocks nowhere known; supported are decoders with "
        f"{' or '.join(f'base_model.{name}' for name in _BLOCKS)}"
    )


def start_block(site: Site) -> int:
    """The first block that must run in full when the pass starts at `site`."""
    return site.layer + 1 if site.kind == "hook_resid_post" else site.layer


def entry(site: Site) -> Site:
    """Where the residual enters a pass that starts at `site`: inside a block, at its input."""
    inside = site.kind not in ("hook_resid_pre", "hook_resid_post")
    return Site(site.layer, "hook_resid_pre") if inside else site


def kinds(edits: Mapping[Site, Edit]) -> list[tuple[Site, Hashable]]:
    """What a pass costs depends on where it is edited, and by what (`DefendedModel.kind`)."""
    return [(site, getattr(edit, "kind", None)) for site, edit in sorted(edits.items())]


@contextmanager
def edited(model: nn.Module, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Replace the activation at each site by `edit(activation)` while the context is open.

    An edit is made on the embedding's device, where every other tensor of a run is, whichever
    device the block is on.
    """
    every = blocks(model)
    home = home_of(model)
    with ExitStack() as stack:
        for site, edit in edits.items():
            if site.layer >= len(every):
                raise UserError(f"{site} does not exist: the model has {len(every)} blocks")
            for handle in _install(every[site.layer], site, _made_at(home, edit)):
                stack.callback(handle.remove)
        yield


@contextmanager
def starting_at(model: nn.Module, block: int, resid_RQD: Tensor) -> Iterator[None]:
    """Skip the blocks before `block`, which receives `resid_RQD` as its input.

    The model's own forward still runs, so masks, rotary tables, window types and the final
    norm are right for every architecture; skipped blocks only hand the residual on.
    """
    every = blocks(model)
    with ExitStack() as stack:
        for index in range(block):
            last = index == block - 1
            stack.enter_context(_running(every[index], _constant(resid_RQD) if last else _identity))
        if block == 0:
            first = every[0].register_forward_pre_hook(
                lambda _, args: (resid_RQD, *args[1:]), prepend=True
            )
            stack.callback(first.remove)
        yield


def home_of(model: nn.Module) -> torch.device:
    """The device of a model's embedding: tokens go in there, and everything read comes back."""
    embedding: Any = cast(Any, model).get_input_embeddings()
    return cast(torch.device, embedding.weight.device)


def _made_at(home: torch.device, edit: Edit) -> Edit:
    return lambda resid: edit(resid.to(home)).to(resid.device)


@contextmanager
def _running(block: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let a block do something else; a sharded model's has a `forward` of its own to put back."""
    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def _identity(resid: Tensor, *_: Any, **__: Any) -> Tensor:
    return resid


def _constant(resid: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: resid


def _install(block: nn.Module, site: Site, edit: Edit) -> list[Any]:
    """Hooks for one site; the handles to remove."""
    match site.kind:
        case "hook_resid_pre":
            return [block.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:]))]
        case "hook_resid_post":
            return [block.register_forward_hook(_on_output(edit))]
        case "hook_mlp_out":
            module: Any = getattr(block, "post_feedforward_layernorm", None) or block.mlp
            return [module.register_forward_hook(_on_output(edit))]
        case "hook_attn_out":
            return [_attention_output(block).register_forward_hook(_on_output(edit))]
        case _:
            return _install_resid_mid(block, edit)


def _install_resid_mid(block: nn.Module, edit: Edit) -> list[Any]:
    # No module carries the residual between attention and MLP: the skip connection adds it.
    # Editing the attention's output by the wanted difference gives exactly that residual.
    if getattr(block, "use_parallel_residual", False):
        raise UserError("hook_resid_mid does not exist where attention and MLP run in parallel")
    entering: list[Tensor] = []

    def remember(_: nn.Module, args: tuple[Any, ...]) -> None:
        entering[:] = [args[0]]

    def mid(attn_out: Tensor) -> Tensor:
        resid = entering.pop().to(attn_out.device)
        return edit(resid + attn_out) - resid

    return [
        block.register_forward_pre_hook(remember),
        _attention_output(block).register_forward_hook(_on_output(mid)),
    ]


def _attention_output(block: nn.Module) -> nn.Module:
    """The module whose output is added to the residual after attention."""
    if hasattr(block, "pre_feedforward_layernorm"):  # Gemma 2 and 3 norm it once more
        return cast(nn.Module, block.post_attention_layernorm)
    return next(cast(nn.Module, getattr(block, n)) for n in _ATTENTION if hasattr(block, n))


def _on_output(edit: Edit) -> Callable[..., Any]:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return hook
