"""Load a target by name: model, tokenizer, SAEs, neutral text and retained facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.hooks import home_of, refuse_kinds
from saebench_recovery.sae.host import Host
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.spec import Dtype
from saebench_recovery.targets import knowledge
from saebench_recovery.targets.hub import (
    SHARDED,
    commit_of,
    load_model,
    load_sae,
    name_on_hub,
    repository_of,
)
from saebench_recovery.targets.presets import Preset, preset, title
from saebench_recovery.targets.target import Target


def load_target(
    name: str,
    device: str = "auto",
    *,
    dtype: Dtype | Literal["auto"] = "auto",
    force_sae: bool = False,
    asked: Sequence[Site] | None = None,
) -> Target:
    """The target of that name on a device (`auto`: an accelerator if there is one; `sharded`: all).

    `dtype`: of the model, `auto` being the preset's own; latents are read in float32 always.
    `force_sae`: an SAE's own word on which model and hook point it belongs to does not count.
    `asked`: hook points at which the engine is checked, by default those of the SAEs.

    Raises:
        UserError: unknown name or device, files missing, SAEs that do not fit the model, or an
            architecture that is not run exactly.
    """
    return assemble(name, preset(name, dtype), device, force_sae=force_sae, asked=asked)


def assemble(
    name: str,
    chosen: Preset,
    device: str = "auto",
    *,
    force_sae: bool = False,
    asked: Sequence[Site] | None = None,
) -> Target:
    """The target that a preset describes; see `load_target`."""
    where = _device(device)
    tokenizer, model = load_model(chosen, where)
    places = {Site.parse(site): sae for site, sae in chosen.saes.items()}
    published = name_on_hub(chosen.model)
    commits = {published: commit_of(published, chosen.revision)} if published else {}
    host = Host(published, str(model.config.model_type))
    load = partial(load_sae, device=str(home_of(model)), host=host, force=force_sae)
    made = Target(
        title(name),
        model,
        tokenizer,
        _Dictionaries(places, load, commits),
        chosen,
        knowledge.neutral_texts(chosen.knowledge),
        knowledge.facts(chosen.knowledge),
        commits,
        tuple(places if asked is None else asked),
    )
    refuse_kinds(model, made.agreement.refused)
    return made


def asked_at(target: Target, sites: Sequence[Site]) -> Target:
    """A loaded target, on the same weights and SAEs, checked at other hook points.

    Raises:
        UserError: the architecture is not run exactly at one of them.
    """
    made = replace(target, asked=tuple(sites))
    refuse_kinds(made.model, made.agreement.refused)
    return made


class _Dictionaries(Mapping[Site, Dictionary]):
    """SAEs by site, each read when it is first asked for: a run seldom needs them all.

    The commits of their repositories are noted in `commits`.
    """

    def __init__(
        self,
        places: Mapping[Site, str],
        load: Callable[[str, Site], Dictionary],
        commits: dict[str, str],
    ) -> None:
        self._places, self._load, self._commits = places, load, commits
        self._read: dict[Site, Dictionary] = {}

    def __getitem__(self, site: Site) -> Dictionary:
        if site not in self._read:
            place = self._places[site]
            self._read[site] = self._load(place, site)
            if repository := repository_of(place):
                self._commits[repository] = commit_of(repository)
        return self._read[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == SHARDED:
        if not torch.cuda.is_available():
            raise UserError(f"device {name!r} is all accelerators, and there is none; try cpu")
        return name
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here; try cpu or auto") from error
    return name
