"""Whether a target is the one that was loaded: its weights, what is hooked to it, and its SAEs.

A defense acts where `intervene` is called, and an attack by what it returns. What writes into the
model or into an SAE, or leaves a hook, changes the clean model or what drift is read from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from saebench_recovery.base.sites import Site
from saebench_recovery.sae.latents import Latents
from saebench_recovery.targets.target import Target

PIECE = 1 << 20  # numbers that are added up at once
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")

_loaded: WeakKeyDictionary[Target, dict[str, int]] = WeakKeyDictionary()


def remember(target: Target) -> None:
    """Note what a target is, before any plugin has it; once."""
    if target not in _loaded:
        _loaded[target] = dict(_contents(target))


def changed(target: Target) -> list[str]:
    """What is not as it was when the target was first seen."""
    before = _loaded[target]
    now = dict(_contents(target))
    return sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))


def misread(latents: Mapping[Site, Latents]) -> list[Site]:
    """Sites whose latents keep other directions than their dictionary has."""
    return [site for site, kept in latents.items() if not _as_in_dictionary(kept)]


def _as_in_dictionary(kept: Latents) -> bool:
    again = Latents(kept.dictionary, kept.chosen)
    names = [name for name in vars(kept) if isinstance(getattr(again, name, None), Tensor)]
    return all(torch.equal(vars(kept)[name], getattr(again, name)) for name in names)


def _contents(target: Target) -> Iterator[tuple[str, int]]:
    for name, weight in (*target.model.named_parameters(), *target.model.named_buffers()):
        yield f"weights of {name}", _checksum(weight)
    for name, part in target.model.named_modules():
        yield from _hooks(name or "the model", part)
    for name in GLOBAL_HOOKS:
        yield name, hash(tuple(map(id, getattr(of_all_modules, name).values())))
    for site, dictionary in target.dictionaries.items():
        for name, value in vars(dictionary).items():
            if isinstance(value, Tensor):
                yield f"{name} of the SAE at {site}", _checksum(value)


def _hooks(name: str, part: nn.Module) -> Iterator[tuple[str, int]]:
    own = tuple(id(hook) for kind in HOOKS for hook in (getattr(part, kind) or {}).values())
    yield f"hooks of {name}", hash((own, id(vars(part).get("forward"))))


def _checksum(values: Tensor) -> int:
    """A number that any change of a value, or of its place, changes."""
    flat = values.detach().contiguous().view(-1)
    if flat.dtype == torch.bool or flat.is_complex():
        flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat.byte()
    numbers = flat.view(INTEGERS[flat.element_size()])
    weight = torch.arange(1, PIECE + 1, device=numbers.device) * 2 + 1
    found = hash(tuple(values.shape))
    for begin in range(0, len(numbers), PIECE):
        piece = numbers[begin : begin + PIECE]
        found = hash((found, int((piece.long() * weight[: len(piece)]).sum())))
    return found
