"""Targets by name, by file or by parts: what to load, where each task is defended, tuned settings.

Pure data (`presets.json`, or a file of the user's), read without importing torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import (
    at_home,
    is_file,
    is_folder,
    read_json,
    read_json_object,
    read_yaml,
    reason,
)
from saebench_recovery.base.settings import nearest, validate
from saebench_recovery.base.sites import Site, hook_name
from saebench_recovery.sae import gemma_scope
from saebench_recovery.spec import Dtype
from saebench_recovery.targets.knowledge import Knowledge

PARTS = "+"  # between the model and the SAEs in the name of a target that is no preset
FILES = (".yaml", ".yml", ".json")
NAMES_CODE = ("judge",)  # settings whose value is imported


class TaskPreset(BaseModel):
    """How a task is set up on a target; a user's own `-D`/`-T` settings go before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str = Field(description="default hook point of the defense")
    task: dict[str, Any] = Field(default_factory=dict)
    defenses: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Preset(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    model: str = Field(
        description="folder inside the package, local path, hub id, or gguf: and a module's name"
    )
    revision: str | None = Field(
        default=None, description="commit of the model on the hub, or SHA-256 of its GGUF file"
    )
    saes: dict[str, str] = Field(
        description="hook point -> folder of a SAELens SAE, or RELEASE/ID of a published one"
    )
    dtype: Dtype = Field(
        default="float32", description="of the model; latents are read in float32 whatever it is"
    )
    bos: bool = Field(default=True, description="prompts begin with the tokenizer's BOS")
    knowledge: Knowledge = Field(
        default="general", description="whose neutral text and retained facts fit the model"
    )
    tasks: dict[str, TaskPreset]


def presets() -> dict[str, Preset]:
    """Every preset by name."""
    text = (resources.files("saebench_recovery.targets") / "presets.json").read_text("utf-8")
    return TypeAdapter(dict[str, Preset]).validate_json(text)


def preset(name: str, dtype: Dtype | Literal["auto"] = "auto") -> Preset:
    """The preset of that name, in that file, or what a name made by `name_of_parts` stands for.

    The model among the parts may be that of a preset, by the preset's name. `dtype`: of the model,
    `auto` being the preset's own.

    Raises:
        UserError: no such target, a file that is no preset, or a part that does not say where it
            belongs.
    """
    chosen = _named(name)
    return chosen if dtype == "auto" else chosen.model_copy(update={"dtype": dtype})


def title(name: str) -> str:
    """What rows and leaderboards call the target: a file's name without folder and ending."""
    file = at_home(name)
    return file.stem if file.suffix in FILES and is_file(file) else name


def _named(name: str) -> Preset:
    known = presets()
    if name in known:
        return known[name]
    file = at_home(name)
    if file.suffix in FILES and (is_file(file) or PARTS not in name):
        return _preset_in(file)
    model, *saes = name.split(PARTS)
    if not saes:
        raise UserError(
            f"unknown target {name!r}; {nearest(name, known)}; "
            "anything else is given by its parts, with --model and --sae, or as a file "
            f"({', '.join(FILES)})"
        )
    placed = dict(_placed(sae) for sae in saes)
    return bare(model).model_copy(update={"saes": placed, "tasks": _everywhere(placed)})


def bare(model: str) -> Preset:
    """A model without SAEs: that of a preset by the preset's name or file, or any other."""
    known = presets().get(model)
    if known is None and Path(model).suffix in FILES:
        known = _preset_in(at_home(model))
    base = known or Preset(description=model, model=model, saes={}, tasks={})
    return base.model_copy(update={"saes": {}, "tasks": {}})


def _everywhere(saes: Iterable[str]) -> dict[str, TaskPreset]:
    """Every built-in task, defended at the first SAE unless -D site names another."""
    from saebench_recovery.base.catalogue import BUILT_IN

    return dict.fromkeys(BUILT_IN["task"], TaskPreset(site=next(iter(saes))))


def _preset_in(file: Path) -> Preset:
    """A user's own preset; what lies beside the file may be named relative to it."""
    what = f"target {str(file)!r}"
    said = _mapping(file, what)
    if unknown := [key for key in said if key not in Preset.model_fields]:
        raise UserError(
            f"{what}: unknown key {unknown[0]!r}; {nearest(unknown[0], Preset.model_fields)}"
        )
    saes = said.get("saes")
    if not (isinstance(saes, dict) and saes):
        found = "missing" if saes is None else repr(saes)
        raise UserError(f"{what}: saes is {found}; it maps one hook point or more to SAEs")
    known = presets().get(str(said.get("model")))
    if known is not None:  # it brings its revision, precision, BOS rule and knowledge
        inherited = known.model_dump(exclude={"description", "saes", "tasks"})
        said = inherited | said | {"model": known.model}
    said.setdefault("description", file.name)
    said.setdefault("tasks", _everywhere(saes))
    chosen = validate(Preset, said, what)
    _check_settings(chosen, what)
    placed = {site: _beside(file, place) for site, place in chosen.saes.items()}
    for site, place in placed.items():
        _check_there(place, chosen.saes[site])
    return chosen.model_copy(update={"model": _beside(file, chosen.model), "saes": placed})


def _check_settings(chosen: Preset, what: str) -> None:
    """What a file says of the tasks: hook points, known defenses, and no code to import."""
    for site in (*chosen.saes, *(task.site for task in chosen.tasks.values())):
        Site.parse(site)
    for name, task in chosen.tasks.items():
        settings = (task.task, *task.defenses.values())
        for key in NAMES_CODE:
            if any(own.get(key) is not None for own in settings):
                raise UserError(
                    f"{what}: {key} of task {name!r} names code, and a file may not have it "
                    f"imported; if you trust it, name it on the command line: -T {key}=..."
                )


def _mapping(file: Path, what: str) -> dict[str, Any]:
    said = read_json(file) if file.suffix == ".json" else read_yaml(file)
    if not isinstance(said, dict):
        raise UserError(f"{what} holds no mapping; write model, saes and so on, see `list targets`")
    return said


def _beside(file: Path, place: str) -> str:
    """The place as it is, or made absolute if it is relative to the folder of the file."""
    there = file.parent / place
    try:
        return str(there.resolve()) if place.startswith(".") or os.path.exists(there) else place
    except (OSError, RuntimeError, ValueError) as error:  # links that lead in a circle
        raise UserError(f"cannot read {str(there)!r}: {reason(error)}") from None


def name_of_parts(model: str, saes: Sequence[str]) -> str:
    """The name of a target made of a model and SAEs, each `PLACE` or `PLACE@HOOK`.

    Raises:
        UserError: a part is missing, or contains what separates them.
    """
    parts = [model, *saes]
    if not (model and saes):
        raise UserError("a target by parts needs --model and at least one --sae")
    if any(PARTS in part for part in parts):
        raise UserError(f"neither --model nor --sae may contain {PARTS!r}; rename the folder")
    return PARTS.join(parts)


def _placed(sae: str) -> tuple[str, str]:
    """Hook point and place of an SAE as the user wrote it."""
    place, at, hook = sae.rpartition("@")
    _check_there(place if at else sae, place if at else sae)
    if not at:
        place, hook = sae, _own_hook(sae)
    try:
        return str(Site.parse(hook)), place
    except UserError:
        absent = "" if os.path.exists(at_home(place)) else "is no folder here, and "
        raise UserError(
            f"SAE {sae!r} {absent}does not say which residual it reads: write "
            f"{place}@blocks.<layer>.hook_resid_post, or hook_resid_pre"
        ) from None


def _check_there(place: str, said: str) -> None:
    """Refuse an SAE that can only be a folder and is none; what may be a published one passes.

    `said` is how the user wrote the place.
    """
    published = "/" in place and not place.startswith((".", "~", "/"))
    if not (published or is_folder(at_home(place)) or is_file(at_home(place))):
        raise UserError(
            f"SAE {said!r} is not there: no such folder, and no RELEASE/ID of a published SAE; "
            "write the path of its folder, or such as gpt2-small-res-jb/blocks.4.hook_resid_pre"
        )


def _own_hook(place: str) -> str:
    """The hook point that the SAE's own folder or id names, as far as it does."""
    path = at_home(place)
    with suppress(UserError, OSError, ValueError, KeyError, AttributeError, TypeError):
        if is_file(path / "cfg.json"):
            said = read_json_object(path / "cfg.json")
        else:
            said = gemma_scope.described(path)
        return hook_name(str((said.get("metadata") or said)["hook_name"]))
    return place.rpartition("/")[2]  # such as gpt2-small-res-jb/blocks.4.hook_resid_pre
