"""Training on a target's own residuals, from its text to a measured SAE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress, part
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.base.sites import Site
from saebench_recovery.model.hooks import blocks
from saebench_recovery.sae.files import load_dictionary
from saebench_recovery.targets.hub import name_on_hub
from saebench_recovery.targets.loading import assemble
from saebench_recovery.targets.presets import bare, presets
from saebench_recovery.targets.target import Target
from saebench_recovery.training.activations import shuffled_blocks
from saebench_recovery.training.memory import check_memory
from saebench_recovery.training.quality import Quality, quality
from saebench_recovery.training.recipe import Recipe
from saebench_recovery.training.text import Source, context, endless_rows
from saebench_recovery.training.train import Origin, train
from saebench_recovery.training.writing import write_answers, write_sampled

TRAINED = 0.95  # of the time when training ends, roughly
RECIPE, SAMPLED, CHATS = "recipe.json", "sampled.jsonl", "chats.jsonl"


def train_on_target(
    recipe: Recipe, folder: Path, device: str = "auto", progress: Progress | None = None
) -> Quality:
    """Train an SAE as the recipe says, save it in a folder, and measure it on held-out text.

    A training that was cut off goes on; one that is complete is only measured again.

    Raises:
        UserError: the folder holds another SAE or training; the model, hook point or text is not
            to be had; or text or memory do not suffice.
    """
    site = Site.parse(recipe.hook)
    _check_folder(folder, recipe)
    target = assemble(recipe.target, bare(recipe.target), device)
    depth = len(blocks(target.model))
    if site.layer >= depth:
        raise UserError(f"{target.name} has no {site}; its blocks are 0 to {depth - 1}")
    if not (folder / "cfg.json").exists():
        train_at(target, site, recipe, folder, progress)
    if progress is not None:
        progress("measuring", TRAINED, 1)
    made = {site: load_dictionary(folder, site, target.device)}
    return quality(replace(target, dictionaries=made), site, _source(recipe, folder).held_out())


def train_at(
    target: Target, site: Site, recipe: Recipe, folder: Path, progress: Progress | None = None
) -> None:
    """The same on a target that is loaded, without measuring.

    Raises:
        UserError: text or memory do not suffice, or the folder cannot be written.
    """
    config: Any = target.model.config
    check_memory(recipe, config.hidden_size, target.device)
    writing = None if progress is None else part(progress, 0, TRAINED / 2)
    if recipe.chat is not None:
        _write_down(recipe, folder)
        write_answers(target, recipe.chat, folder / CHATS, writing)
    elif recipe.text is None:
        _write_down(recipe, folder)
        write_sampled(target, folder / SAMPLED, recipe.tokens, recipe.seed, writing)
    rows = endless_rows(target, _source(recipe, folder), recipe.width)
    _write_down(recipe, folder)
    writes = recipe.chat is not None or recipe.text is None
    begin = TRAINED / 2 if writes else 0
    known = recipe.target if recipe.target in presets() else config.model_type
    train(
        recipe,
        # A folder has any name, and an SAE would be taken for one of the model of that name.
        Origin(name_on_hub(target.preset.model) or known, target.bos is not None, context(target)),
        lambda skip: shuffled_blocks(target, site, rows, recipe.block, recipe.seed, skip),
        folder,
        None if progress is None else part(progress, begin, TRAINED),
    )


def _source(recipe: Recipe, folder: Path) -> Source:
    """The documents of a recipe, what the model writes itself included."""
    if recipe.chat is not None:
        return Source(recipe.text, str(folder / CHATS))
    return Source(recipe.text or str(folder / SAMPLED))


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that holds anything but this training."""
    file = folder / RECIPE
    if file.exists():
        if file.read_text("utf-8") != _spelled(recipe):
            raise UserError(
                f"{folder} holds a training with other settings ({RECIPE}); give another --out"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is no empty folder and has no {RECIPE}; give another --out")


def _write_down(recipe: Recipe, folder: Path) -> None:
    """What the folder is for, from when there is something in it that could be gone on with."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE).write_text(_spelled(recipe), "utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None


def _spelled(recipe: Recipe) -> str:
    return canonical_json(recipe.model_dump(mode="json"))
