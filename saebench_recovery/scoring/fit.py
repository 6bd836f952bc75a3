"""Fitting a defense on what it may read: never what is attacked, never what is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense, Example, Split, Task
from saebench_recovery.sae.latents import Dictionary, Latents
from saebench_recovery.scoring.integrity import fingerprint, replaced_since
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.unchanged import changed, misread, remember
from saebench_recovery.targets.phase import fitting, visible
from saebench_recovery.targets.target import Target


def fit_task(setting: Setting) -> None:
    """Let the setting's task make what it learns for all who ask; no defense is fitted yet."""
    target, task = setting.target, setting.task
    if setting.watched:
        remember(target)
    task.fit(target, target.site_for(task.name, setting.defense.config.site))


def fit(setting: Setting) -> None:
    """Fit the setting's defense, and its monitor if it has one.

    Raises:
        UserError: it reads the evaluation split, defends latents of its own, changes the target or
            what judges it, or see `Defense.fit`.
    """
    with fitting(), _watching(setting) if setting.watched else nullcontext():
        task = _restricted(setting.task, setting.defense.name)
        setting.defense.fit(setting.target, task)
        setting.defense.watch(setting.target, task)


@contextmanager
def _watching(setting: Setting) -> Iterator[None]:
    """Hold what a fit leaves behind to what was there before; it reads all SAEs of the target."""
    target, judge = setting.target, setting.task
    remember(target)
    dictionaries, before = dict(target.dictionaries), fingerprint(judge)
    yield
    if names := replaced_since(before, judge):
        raise UserError(f"{setting.defense.title} replaces {names[0]} in fit, which judges it")
    _refuse_others(setting.defense, dictionaries)
    if parts := changed(target):
        raise UserError(
            f"{setting.defense.title} or {setting.task.title} changes the target in fit "
            f"({parts[0]}); write to no weight and no SAE, and leave no hook on the model"
        )


def _refuse_others(defense: Defense, dictionaries: Mapping[Site, Dictionary]) -> None:
    """Drift is read from what a defense declares: it must not say itself what they read.

    Raises:
        UserError: there are none, or they are not latents of the target's SAE at that site, of
            another class, or read otherwise than it does.
    """
    if not getattr(defense, "latents", None):
        raise UserError(f"{defense.title} declares no latents; set `latents` in fit")
    for site, latents in defense.latents.items():
        if type(latents) is not Latents or latents.dictionary is not dictionaries.get(site):
            raise UserError(
                f"{defense.title} defends latents at {site} that are not the target's own; take "
                "them from target.dictionary(site).defended(indices)"
            )
    for site in misread(defense.latents):
        raise UserError(
            f"{defense.title} has latents at {site} that read otherwise than their SAE does"
        )


def _restricted(task: Task, defense: str) -> Task:
    """The task without its evaluation split, and with half of what it retains."""
    own = task.examples

    def examples(target: Target, split: Split) -> Sequence[Example]:
        if split == "evaluation":
            raise UserError(
                f"defense {defense!r} reads the evaluation split in fit, which is what will be "
                "attacked; use the selection split"
            )
        found = own(target, split)
        return visible(found, lambda e: str(e.prompt)) if split == "retain" else found

    restricted = copy(task)
    vars(restricted)["examples"] = examples
    return restricted
