"""A spec made ready to run: names checked, settings merged, identity known, plugins made.

All but the last imports neither a plugin that is built in nor torch, so that a complete run is
found at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from saebench_recovery import registry
from saebench_recovery.base.catalogue import Kind
from saebench_recovery.base.described import check_keys
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import canonical_json, nearest
from saebench_recovery.base.sites import Site
from saebench_recovery.runs.fingerprint import Fingerprints
from saebench_recovery.runs.sources import source_hash
from saebench_recovery.spec import RunSpec, identity
from saebench_recovery.targets.presets import Preset, TaskPreset, preset

if TYPE_CHECKING:
    from saebench_recovery.interfaces import Attack, Defense, Plugin, Task


# Fields that are merged into the settings of each task.
OF_A_TASK = {"tasks", "defense_config", "task_config"}
# Fields that say how an attack searches, what it may spend, and what else is run beside it.
OF_THE_ATTACK = {
    "attack",
    "attack_config",
    "budget",
    "budget_unit",
    "flops",
    "seed",  # of what is drawn for an attack and its controls; nothing else is drawn by it
    "batch_size",
    *OF_A_TASK,
}


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
    for name in dict.fromkeys(name for task in chosen.tasks.values() for name in task.defenses):
        registry.check_name("defense", name)  # a misspelled one would leave its settings unread
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
    _check_keys(spec, [*own, *added])
    return spec.model_copy(update={"tasks": (*own, *added)})


def _check_keys(spec: RunSpec, tasks: Sequence[str]) -> None:
    """Of plugins that are built in: a misspelled setting need not wait until they are imported."""
    named: list[tuple[Kind, str, Mapping[str, Any]]] = [
        *(("task", name, spec.task_config) for name in tasks),
        ("defense", spec.defense, spec.defense_config),
        ("attack", spec.attack, spec.attack_config),
    ]
    for kind, name, settings in named:
        if registry.is_built_in(kind, name):
            check_keys(kind, name, settings)


@dataclass(frozen=True)
class Matchup:
    """The plugins of one task, freshly made."""

    task: Task
    defense: Defense
    attack: Attack

    @property
    def plugins(self) -> dict[Kind, Plugin]:
        return {"task": self.task, "defense": self.defense, "attack": self.attack}


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a run before a model is loaded.

    `settings` are those of each named task and its plugins, the target's own and over them the
    user's. What a class has by default is not among them: its source is in the environment.
    """

    spec: RunSpec
    settings: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]

    @classmethod
    def of(cls, spec: RunSpec, fingerprints: Fingerprints | None = None) -> Plan:
        """The plan of a checked spec; plans of several may share the hashes that they hold.

        Raises:
            UserError: a plugin of the user's does not import, or its source cannot be read.
        """
        chosen = preset(spec.target, spec.dtype)
        settings = {name: _settings(spec, chosen, name) for name in spec.tasks}
        return cls(spec, settings, _environment(spec, chosen, fingerprints or Fingerprints()))

    @cached_property
    def identity(self) -> str:
        return identity(self.spec, self.settings, self.environment)

    def before_attack(self, task: str) -> str:
        """Names all that the passes on a task before any attack depend on."""
        spec = self.spec.model_dump(mode="json", exclude=OF_THE_ATTACK)
        settings = {k: v for k, v in self.settings[task].items() if k != "attack"}
        return canonical_json([spec, settings])

    def intervention(self, task: str) -> str:
        """The same without what the defense's monitor is told: it watches and changes nothing.

        Two defenses act alike whose classes differ in settings and their defaults alone. Of a
        defense of the user's nobody knows what its settings do. Imports the defense, and torch.
        """
        name = self.spec.defense
        if not registry.is_built_in("defense", name):
            return self.before_attack(task)
        from saebench_recovery.monitors.watched import Watched

        settings = self.settings[task]
        defense = registry.create("defense", name, settings["defense"])
        acts = next(cls for cls in type(defense).__mro__ if _has_code(cls))
        config = defense.config.model_dump(mode="json", exclude=set(Watched.Config.model_fields))
        spec = self.spec.model_dump(mode="json", exclude=OF_THE_ATTACK | {"defense"})
        before = {"site": settings["site"], "task": settings["task"], "defense": config}
        return canonical_json([spec, before, acts.__qualname__])

    def search(self, task: str) -> str:
        """Names all that an attack's search on a task depends on.

        Where code of others takes part nobody knows that, and no other plan has the same.
        """
        if registry.code_of_others() or self.environment["sources"]:
            return canonical_json([self.identity, task])
        spec = self.spec.model_dump(mode="json", include=OF_THE_ATTACK - OF_A_TASK)
        return canonical_json([self.intervention(task), spec, self.settings[task]["attack"]])

    @cached_property
    def matchups(self) -> Mapping[str, Matchup]:
        """The plugins by the label of a row; imports them, and torch.

        Raises:
            UserError: a key or value that does not validate, a plugin that does not import.
        """
        found: dict[str, Matchup] = {}
        for name, settings in self.settings.items():
            for task in cast("Task", registry.create("task", name, settings["task"])).variants():
                defense = registry.create("defense", self.spec.defense, settings["defense"])
                attack = registry.create("attack", self.spec.attack, settings["attack"])
                found[task.label] = Matchup(task, cast("Defense", defense), cast("Attack", attack))
        return found

    @property
    def plugins(self) -> list[Plugin]:
        """All that take part."""
        return [p for matchup in self.matchups.values() for p in matchup.plugins.values()]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every hook point that a setting of the run names, the defended ones among them."""
        return tuple(sorted(set(_named_sites(self.record()["resolved"]))))

    def fresh(self) -> Plan:
        """The same, without the plugins that it has made."""
        return replace(self)

    def check_settings(self) -> None:
        """Make sure that the settings fit the plugins, without keeping any.

        Raises:
            UserError: see `matchups`.
        """
        _ = self.fresh().matchups

    def record(self) -> dict[str, Any]:
        """The `spec` of a result, with the resolved settings of each row."""
        resolved = {
            label: {
                "site": self.settings[matchup.task.name]["site"],
                **{k: p.config.model_dump(mode="json") for k, p in matchup.plugins.items()},
            }
            for label, matchup in self.matchups.items()
        }
        plugins = [p for matchup in self.matchups.values() for p in matchup.plugins.values()]
        files = {registry.plugin_file(type(plugin)) for plugin in plugins}
        return {
            **self.spec.model_dump(mode="json"),
            "resolved": resolved,
            "environment": self.environment,
            "plugin_files": sorted(file.name for file in files if file is not None),
        }


def _has_code(cls: type) -> bool:
    """Whether a class defines more than settings, and what every class has."""
    return any(name not in ("Config", "name") and not name.startswith("_") for name in vars(cls))


def _named_sites(settings: Any) -> Iterator[Site]:
    if isinstance(settings, str):
        with suppress(UserError):  # of any other text
            yield Site.parse(settings)
    elif isinstance(settings, Mapping):
        yield from _named_sites([*settings, *settings.values()])
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _named_sites(value)


def _settings(spec: RunSpec, chosen: Preset, name: str) -> dict[str, Any]:
    own = chosen.tasks.get(name) or TaskPreset(site=str(spec.defense_config["site"]))
    return {
        "site": own.site,
        "task": {**own.task, **spec.task_config},
        "defense": {**own.defenses.get(spec.defense, {}), **spec.defense_config},
        "attack": dict(spec.attack_config),
    }


def _environment(spec: RunSpec, chosen: Preset, fingerprints: Fingerprints) -> dict[str, Any]:
    """Hashes and versions of all code and data behind the numbers."""
    named: list[tuple[Kind, str]] = [("defense", spec.defense), ("attack", spec.attack)]
    named += [("task", name) for name in spec.tasks]
    plugins = {
        (kind, name): registry.plugin_class(kind, name)
        for kind, name in named
        if not registry.is_built_in(kind, name)
    }
    if ("attack", spec.attack) in plugins:  # a suite may have members that stand elsewhere
        attack = cast("Attack", registry.create("attack", spec.attack, spec.attack_config))
        members: dict[tuple[Kind, str], type[Plugin]] = {
            ("attack", member.name): type(member) for member in attack.suite()
        }
        plugins |= {key: cls for key, cls in members.items() if not registry.is_built_in(*key)}
    return {
        "target": fingerprints.target(chosen),
        "harness": fingerprints.harness,
        "packages": fingerprints.packages,
        "sources": {f"{kind} {name}": source_hash(cls) for (kind, name), cls in plugins.items()},
    }
