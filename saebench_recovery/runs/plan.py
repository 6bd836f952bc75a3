"""A spec made ready to run: names checked, settings resolved, plugins made, identity known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.runs.fingerprint import (
    harness_fingerprint,
    package_versions,
    target_fingerprint,
)
from saebench_recovery.base.settings import nearest
from saebench_recovery.base.catalogue import Kind
from saebench_recovery.spec import RunSpec, identity
from saebench_recovery.targets.presets import Preset, TaskPreset, preset

if TYPE_CHECKING:
    from saebench_recovery.interfaces import Attack, Defense, Plugin, Task


def check_names(spec: RunSpec) -> RunSpec:
    """Check every name without importing a plugin, and spell out which tasks are run.

    Raises:
        UserError: an unknown name, or a task that the target does not have.
    """
    chosen = preset(spec.target)
    if not chosen.saes:
        raise UserError(
            f"target {spec.target!r} has no SAE of its own; bring one: "
            f"--model {spec.target} --sae RELEASE/ID_OR_PATH[@HOOK]"
        )
    registry.check_name("defense", spec.defense)
    registry.check_name("attack", spec.attack)
    # The target's order whatever the user's, then tasks that the target knows nothing of.
    own = [name for name in chosen.tasks if not spec.tasks or name in spec.tasks]
    added = [name for name in dict.fromkeys(spec.tasks) if name not in chosen.tasks]
    for name in [*added, *own]:
        registry.check_name("task", name)
    if added and "site" not in spec.defense_config:
        raise UserError(
            f"target {spec.target!r} does not have task {added[0]!r}; "
            f"{nearest(added[0], chosen.tasks)}; a task of your own needs a hook point to defend, "
            "such as -D site=blocks.1.hook_resid_post"
        )
    if not own and not added:
        raise UserError(f"target {spec.target!r} has no task of its own; name one with --task")
    return spec.model_copy(update={"tasks": (*own, *added)})


@dataclass(frozen=True)
class Trio:
    """The plugins of one task, freshly made."""

    task: Task
    defense: Defense
    attack: Attack

    @property
    def plugins(self) -> dict[Kind, Plugin]:
        return {"task": self.task, "defense": self.defense, "attack": self.attack}


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a run before a model is loaded."""

    spec: RunSpec
    trios: Mapping[str, Trio]
    resolved: Mapping[str, Any]
    environment: Mapping[str, Any]

    @classmethod
    def of(cls, spec: RunSpec) -> Plan:
        """Resolve a checked spec: plugin defaults, then the target's own, then the user's.

        Raises:
            UserError: a key or value that does not validate, a plugin that does not import.
        """
        chosen = preset(spec.target, spec.dtype)
        trios: dict[str, Trio] = {}
        resolved: dict[str, Any] = {}
        for name in spec.tasks:
            own = chosen.tasks.get(name) or TaskPreset(site=str(spec.defense_config["site"]))
            settings = {**own.task, **spec.task_config}
            for task in cast("Task", registry.create("task", name, settings)).variants():
                trio = trios[task.label] = _trio(spec, task, own)
                configs = {k: p.config.model_dump(mode="json") for k, p in trio.plugins.items()}
                resolved[task.label] = {"site": own.site, **configs}
        return cls(spec, trios, resolved, _environment(trios, chosen))

    @property
    def identity(self) -> str:
        return identity(self.spec, self.resolved, self.environment)

    def record(self) -> dict[str, Any]:
        """The `spec` of a result."""
        said = self.spec.model_dump(mode="json")
        plugins = [plugin for trio in self.trios.values() for plugin in trio.plugins.values()]
        files = {file.name for file in map(registry.plugin_file, plugins) if file is not None}
        return {
            **said,
            "resolved": self.resolved,
            "environment": self.environment,
            "plugin_files": sorted(files),
        }


def _trio(spec: RunSpec, task: Task, own: TaskPreset) -> Trio:
    tuned = own.defenses.get(spec.defense, {})
    defense = registry.create("defense", spec.defense, {**tuned, **spec.defense_config})
    attack = registry.create("attack", spec.attack, spec.attack_config)
    return Trio(task, cast("Defense", defense), cast("Attack", attack))


def _environment(trios: Mapping[str, Trio], chosen: Preset) -> dict[str, Any]:
    """Hashes and versions of all code and data behind the numbers."""
    plugins = [pair for trio in trios.values() for pair in trio.plugins.items()]
    members: list[tuple[Kind, Plugin]] = [
        ("attack", member) for trio in trios.values() for member in trio.attack.suite()
    ]
    sources = {
        f"{kind} {plugin.name}": registry.source_hash(plugin)
        for kind, plugin in [*plugins, *members]
    }
    return {
        "target": target_fingerprint(chosen),
        "harness": harness_fingerprint(),
        "packages": package_versions(),
        "sources": sources,
    }
