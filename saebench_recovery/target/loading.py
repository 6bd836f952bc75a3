"""Load a target by name: model, tokenizer, SAEs, neutral text and retained facts."""

from __future__ import annotations

from importlib import resources
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saebench_recovery.errors import UserError
from saebench_recovery.sites import Site
from saebench_recovery.target.organism import world
from saebench_recovery.target.presets import preset
from saebench_recovery.target.sae_files import load_dictionary
from saebench_recovery.target.target import Target

NEUTRAL_TEXTS = 32


def load_target(name: str, device: str = "auto") -> Target:
    """The target of that name on a device (`auto`: an accelerator if there is one).

    Raises:
        UserError: unknown name or device, files missing, or SAEs that do not fit the model.
    """
    chosen = preset(name)
    where = _device(device)
    folder = _folder(chosen.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"target {name!r} cannot be loaded from {folder}: {error}") from error
    dictionaries = {
        Site.parse(site): load_dictionary(
            _folder(sae), Site.parse(site), where, d_model=model.config.hidden_size
        )
        for site, sae in chosen.saes.items()
    }
    neutral = list(islice(world.neutral_texts("evaluation"), NEUTRAL_TEXTS))
    return Target(
        name, model.to(where), tokenizer, dictionaries, chosen, neutral, _retained_facts()
    )


def _retained_facts() -> list[tuple[str, str, tuple[str, ...]]]:
    """Direct questions about the domain that no task of the organism tries to remove."""
    found = []
    for fact in world.facts("towns"):
        others = (f" {v}" for v in world.relation_table(fact)["values"] if v != fact.value)
        found.append((world.question(fact), f" {fact.value}", tuple(others)))
    return found


def _folder(place: str) -> Path:
    inside = Path(str(resources.files("saebench_recovery.target"))) / place
    return inside if inside.exists() else Path(place)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here; try cpu or auto") from error
    return name
