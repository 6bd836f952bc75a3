"""Whether an SAE belongs to the model and hook point that it is to be read at, as far as it says.

Metadata name models in several ways: with and without their organisation, as TransformerLens does
(`gpt2-small`), or the base model where the instruct model is meant too. Names that differ only so
are the same. A folder on this machine has any name, so there only the architecture can disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site, hook_name

FORCE = "or say --force-sae if you know that it fits"
_ALIASES = {"gpt2-small": "gpt2", "mistral-7b": "mistral-7b-v0.1"}
_TUNED = re.compile(r"-(?:pt|it|base|instruct|chat|hf)$")
# How the names of models begin, and the model types of transformers that they have.
_TYPES = {
    "gpt2": ("gpt2",),
    "pythia": ("gpt_neox",),
    "gemma-3-": ("gemma3", "gemma3_text"),
    "gemma-2-": ("gemma2",),
    "gemma-": ("gemma",),
    "llama-": ("llama",),
    "deepseek-r1-distill-llama": ("llama",),
    "mistral-": ("mistral",),
    "qwen2": ("qwen2",),
    "qwen3-": ("qwen3", "qwen3_moe"),
    "gpt-oss": ("gpt_oss",),
}


@dataclass(frozen=True)
class Host:
    """The model that an SAE is to be read on: its name on the hub, if it has one, and its type."""

    name: str | None
    kind: str


def check_metadata(metadata: Mapping[str, Any], site: Site, host: Host | None) -> None:
    """Compare what an SAE's metadata say it was trained on with where it is to be read.

    Raises:
        UserError: another hook point, or another model than `host` (where given).
    """
    _check_site(metadata, site)
    trained = metadata.get("model_name")
    if host is None or not isinstance(trained, str):
        return
    plain = _plain(trained)
    kinds = next((k for start, k in _TYPES.items() if plain.startswith(start)), (host.kind,))
    if host.kind not in kinds or (host.name is not None and _plain(host.name) != plain):
        raise UserError(
            f"this SAE was trained on {trained!r}, not on {host.name or f'a {host.kind} model'}; "
            f"use one of this model, {FORCE}"
        )


def _check_site(metadata: Mapping[str, Any], site: Site) -> None:
    name = metadata.get("hook_name") or metadata.get("hook_point")
    if name is None:
        return  # nothing is known: the caller says where it belongs
    same = {str(site)}  # the residual after a block is the one before the next
    if site.kind == "hook_resid_post":
        same.add(f"blocks.{site.layer + 1}.hook_resid_pre")
    elif site.kind == "hook_resid_pre":
        same.add(f"blocks.{site.layer - 1}.hook_resid_post")
    if hook_name(name) not in same:
        raise UserError(f"this SAE was trained at {name!r}, not at {site}; use it there, {FORCE}")


def _plain(name: str) -> str:
    """The name without organisation, case and kind of tuning."""
    plain = name.rpartition("/")[2].lower().removeprefix("meta-")
    while (shorter := _TUNED.sub("", plain)) != plain:
        plain = shorter
    return _ALIASES.get(plain, plain)
