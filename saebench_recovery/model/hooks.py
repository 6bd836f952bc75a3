"""Hook points on plain transformers modules, and starting a pass in the middle of the model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.addends import (
    Addend,
    attention_addend,
    check_sequential,
    mlp_addend,
)

Edit = Callable[[Tensor], Tensor]

_refused: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()

_BLOCKS = ("h", "layers")


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
    refused = _refused.get(model, {})
    with ExitStack() as stack:
        for site, edit in edits.items():
            if site.layer >= len(every):
                raise UserError(f"{site} does not exist: the model has {len(every)} blocks")
            if site.kind in refused:
                raise UserError(f"there is no {site}: {refused[site.kind]}")
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


@contextmanager
def skipping(model: nn.Module, left_out: Iterable[int]) -> Iterator[None]:
    """Let some blocks hand the residual on as it is."""
    every = blocks(model)
    with ExitStack() as stack:
        for index in left_out:
            stack.enter_context(_running(every[index], _identity))
        yield


def refuse_kinds(model: nn.Module, lines: Mapping[str, str]) -> None:
    """From now on refuse hook points of some kinds, each with its line."""
    _refused[model] = dict(lines)


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
            return [_install_addend(mlp_addend(block), edit)]
        case "hook_attn_out":
            return [_install_addend(attention_addend(block), edit)]
        case _:
            return _install_resid_mid(block, edit)


def _install_addend(addend: Addend, edit: Edit) -> Any:
    def changed(output: Tensor) -> Tensor:
        return addend.output(output, edit(addend.of(output)))

    return addend.module.register_forward_hook(_on_output(changed))


def _install_resid_mid(block: nn.Module, edit: Edit) -> list[Any]:
    # No module carries the residual between attention and MLP: the skip connection adds it.
    # Editing what attention adds by the wanted difference gives exactly that residual.
    check_sequential(block)
    entering: list[Tensor] = []

    def remember(_: nn.Module, args: tuple[Any, ...]) -> None:
        entering[:] = [args[0]]

    def mid(attn_out: Tensor) -> Tensor:
        resid = entering.pop().to(attn_out.device)
        return edit(resid + attn_out) - resid

    return [
        block.register_forward_pre_hook(remember),
        _install_addend(attention_addend(block), mid),
    ]


def _on_output(edit: Edit) -> Callable[..., Any]:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return hook
