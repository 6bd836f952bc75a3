"""Load a target by name: model, tokenizer, SAEs, neutral text and retained facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from saebench_recovery.errors import UserError
from saebench_recovery.sites import Site
from saebench_recovery.target import knowledge
from saebench_recovery.target.hub import load_model, load_sae
from saebench_recovery.target.latents import Dictionary
from saebench_recovery.target.presets import preset
from saebench_recovery.target.target import Target


def load_target(name: str, device: str = "auto") -> Target:
    """The target of that name on a device (`auto`: an accelerator if there is one).

    Raises:
        UserError: unknown name or device, files missing, or SAEs that do not fit the model.
    """
    chosen = preset(name)
    where = _device(device)
    tokenizer, model = load_model(chosen)
    dictionaries = _Dictionaries({Site.parse(s): sae for s, sae in chosen.saes.items()}, where)
    return Target(
        name,
        model.to(where),
        tokenizer,
        dictionaries,
        chosen,
        knowledge.neutral_texts(chosen.knowledge),
        knowledge.facts(chosen.knowledge),
    )


class _Dictionaries(Mapping[Site, Dictionary]):
    """SAEs by site, each read when it is first asked for: a run seldom needs them all."""

    def __init__(self, places: Mapping[Site, str], device: str) -> None:
        self._places, self._device = places, device
        self._read: dict[Site, Dictionary] = {}

    def __getitem__(self, site: Site) -> Dictionary:
        if site not in self._read:
            self._read[site] = load_sae(self._places[site], site, self._device)
        return self._read[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here; try cpu or auto") from error
    return name
