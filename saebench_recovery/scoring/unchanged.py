"""Whether a target is the one that was loaded: its model, its SAEs, and the texts beside them.

A defense acts where `intervene` is called, and an attack by what it returns. What writes into the
model or into an SAE, leaves a hook or puts a function in place of another changes the clean model,
what drift is read from, or what side effects are scored on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from saebench_recovery.base.sites import Site
from saebench_recovery.sae.latents import Dictionary, Latents
from saebench_recovery.targets.target import Target

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
TOKENS = 8  # of a prompt that every vocabulary has
ROUNDING = 1e-3  # of the largest logit


@dataclass(frozen=True)
class _Known:
    """What a target computes for one prompt, and checksums of all that it consists of."""

    logits: Tensor
    contents: Mapping[str, object]

    @classmethod
    def of(cls, target: Target) -> _Known:
        # The pass comes first: dynamic and long RoPE keep frequencies of the last prompt in
        # buffers, and compute them anew for this one.
        return cls(_logits(target.model, target.device), dict(_contents(target)))


# By model, which targets that are checked at other hook points have in common.
_loaded: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def remember(target: Target) -> None:
    """Note what a target is, before any plugin has it; once."""
    if target.model not in _loaded:
        _loaded[target.model] = _Known.of(target)


def changed(target: Target) -> list[str]:
    """What is not as it was when the target was first seen."""
    before, now = _loaded[target.model], _Known.of(target)
    names = before.contents.keys() | now.contents.keys()
    found = sorted(n for n in names if before.contents.get(n) != now.contents.get(n))
    gap, largest = (now.logits - before.logits).abs().max(), before.logits.abs().max()
    return found if gap <= ROUNDING * largest else [*found, "what the model computes"]


def misread(latents: Mapping[Site, Latents]) -> list[Site]:
    """Sites whose latents read or write otherwise than their dictionary says."""
    return [site for site, kept in latents.items() if not _as_in_dictionary(kept)]


def _as_in_dictionary(kept: Latents) -> bool:
    """Whether all that is kept of latents and of their dictionary is what its file gives."""
    fresh = replace(kept.dictionary)
    again = Latents(fresh, kept.chosen)
    return _same(kept, again) and _same(kept.dictionary, fresh)


def _same(kept: Latents | Dictionary, again: Latents | Dictionary) -> bool:
    own = {field.name for field in fields(kept)}
    for name, value in vars(kept).items():
        if name in own:
            continue
        if not isinstance(getattr(type(kept), name, None), cached_property):
            return False  # a function in place of the class's own
        now = getattr(again, name)
        if isinstance(value, Latents):
            if not _same(value, now):
                return False
        elif dict(_checksums(name, value)) != dict(_checksums(name, now)):
            return False
    return True


@torch.no_grad()
def _logits(model: nn.Module, device: str) -> Tensor:
    ids = torch.arange(TOKENS, device=device)[None]
    logits: Tensor = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits.float().cpu()


def _contents(target: Target) -> Iterator[tuple[str, object]]:
    for name, weight in (*target.model.named_parameters(), *target.model.named_buffers()):
        yield f"weights of {name}", _checksum(weight)
    for name, part in target.model.named_modules():
        yield f"hooks of {name or 'the model'}", _hooks(part)
    for name in GLOBAL_HOOKS:
        yield name, tuple(map(id, getattr(of_all_modules, name).values()))
    yield "the modes of torch", _modes()
    yield "functions of the tokenizer", _own_functions(target.tokenizer)
    texts = (target.neutral_texts, target.retained)
    yield "neutral texts or retained questions", hashlib.sha256(repr(texts).encode()).hexdigest()
    for site, dictionary in target.dictionaries.items():
        yield from _checksums(f"the SAE at {site}", dictionary)


def _modes() -> tuple[object, ...]:
    """What all of torch goes by, and a plugin may leave switched on."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
    )


def _hooks(part: nn.Module) -> tuple[object, ...]:
    each = [hook for kind in HOOKS for hook in (getattr(part, kind) or {}).values()]
    own = tuple(id(hook) for hook in each if not _of_transformers(hook))
    return (type(part), own, _own_functions(part))


def _own_functions(holder: object) -> tuple[tuple[str, int], ...]:
    """Functions that an object has beside those of its class."""
    return tuple((name, id(value)) for name, value in vars(holder).items() if callable(value))


def _of_transformers(hook: object) -> bool:
    """Whether the library put it there itself, as it does where hidden states are asked for."""
    return str(getattr(hook, "__globals__", {}).get("__name__")).startswith("transformers.")


def _checksums(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Of a value, or of all fields of a data class."""
    if isinstance(value, Tensor):
        yield name, _checksum(value)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _checksums(f"{field.name} of {name}", getattr(value, field.name))
    else:
        yield name, repr(value)


def _checksum(values: Tensor) -> tuple[type, str]:
    """Of the bytes; that of gigabytes takes seconds, so it is asked for once before and after."""
    flat = values.detach().contiguous().view(-1).view(torch.uint8)
    return type(values), hashlib.sha256(flat.cpu().numpy().data).hexdigest()
