"""Whether a target is the one that was loaded: its weights, what is hooked to it, and its SAEs.

A defense acts where `intervene` is called, and an attack by what it returns. What writes into the
model or into an SAE, or leaves a hook, changes the clean model or what drift is read from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from saebench_recovery.base.sites import Site
from saebench_recovery.sae.latents import Latents
from saebench_recovery.targets.target import Target

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")

_loaded: WeakKeyDictionary[Target, dict[str, object]] = WeakKeyDictionary()


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


def _contents(target: Target) -> Iterator[tuple[str, object]]:
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


def _hooks(name: str, part: nn.Module) -> Iterator[tuple[str, object]]:
    each = [hook for kind in HOOKS for hook in (getattr(part, kind) or {}).values()]
    own = tuple(id(hook) for hook in each if not _of_transformers(hook))
    yield f"hooks of {name}", hash((own, id(vars(part).get("forward"))))


def _of_transformers(hook: object) -> bool:
    """Whether the library put it there itself, as it does where hidden states are asked for."""
    return str(getattr(hook, "__globals__", {}).get("__name__")).startswith("transformers.")


def _checksum(values: Tensor) -> str:
    """Of the bytes; that of gigabytes takes seconds, so it is asked for once before and after."""
    flat = values.detach().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.cpu().numpy().data).hexdigest()
