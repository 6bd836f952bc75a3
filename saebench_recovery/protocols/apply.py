"""A spec under a protocol: what the user left open is filled in, what he said stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.protocols.experiment import Experiment, Setting, experiments
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.presets import presets

CONFIGS = ("defense_config", "attack_config", "task_config")


def fill(spec: RunSpec) -> RunSpec:
    """The spec with every field that was not set taken from its protocol's experiment.

    Filling twice changes nothing. A spec without a protocol is returned as it is.

    Raises:
        UserError: no such protocol, or it has no experiment of this task and target.
    """
    if spec.protocol is None:
        return spec
    chosen = experiment_of(spec)
    said = spec.model_dump(include=spec.model_fields_set)
    run = {name: setting.value for name, setting in chosen.run.items()}
    unit = run["budget_unit"]
    if "budget" in said or said.get("budget_unit", unit) != unit:
        # A number without its unit says nothing: the user's own pair, or the published one.
        run = {name: value for name, value in run.items() if not name.startswith("budget")}
    filled = {"target": chosen.target, "attack": chosen.arm, **run, **said, "tasks": [chosen.task]}
    for config in CONFIGS:
        settings = _settings(chosen, filled, config)
        own = {name: setting.value for name, setting in settings.items()}
        filled[config] = {**own, **said.get(config, {})}
    return RunSpec.model_validate(filled)


def experiment_of(spec: RunSpec) -> Experiment:
    """The one experiment of the spec's protocol that its task and target name.

    Raises:
        UserError: there is none, or there are several.
    """
    assert spec.protocol is not None
    known = experiments(spec.protocol)
    listed = ", ".join(f"{e.task} on {e.target}" for e in known.values())
    # A target by parts may be what the experiment was done on, under another name.
    named = spec.target in presets() and "target" in spec.model_fields_set
    fit = [
        experiment
        for task, experiment in known.items()
        if set(spec.tasks) <= {task} and (not named or spec.target == experiment.target)
    ]
    if len(fit) == 1:
        return fit[0]
    wanted = " and ".join(spec.tasks) or "a task"
    where = f" on {spec.target}" if named else ""
    raise UserError(
        f"protocol {spec.protocol!r} has no experiment of {wanted}{where}; it has {listed}"
        if not fit
        else f"protocol {spec.protocol!r} has several experiments: choose one with --task; "
        f"it has {listed}"
    )


def departures(spec: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """In what a filled spec, as a result holds it, is not the experiment; a line for each."""
    whole: dict[str, Any] = {"target": experiment.target, "limit": None}
    found = [_departure(n, spec[n], value) for n, value in whole.items() if spec[n] != value]
    for name, setting in experiment.run.items():
        found += _changed(name, spec[name], setting)
    if spec["attack"] not in experiment.arms:
        arms = " or ".join(experiment.arms)
        found.append(_departure("attack", spec["attack"], arms))
    for config in CONFIGS:
        settings = _settings(experiment, spec, config)
        for name, value in spec[config].items():
            if name in settings:
                found += _changed(name, value, settings[name])
            else:
                found.append(_departure(name, value, "what the plugin does by default"))
    return found


def _settings(
    experiment: Experiment, spec: Mapping[str, Any], config: str
) -> Mapping[str, Setting]:
    """The experiment's settings of a plugin, none where the user chose another plugin."""
    if config == "defense_config" and spec["defense"] != experiment.run["defense"].value:
        return {}
    if config == "attack_config":
        return experiment.settings_of(spec["attack"])
    settings: Mapping[str, Setting] = getattr(experiment, config)
    return settings


def _changed(name: str, value: Any, setting: Setting) -> list[str]:
    same = value == setting.value or value in setting.also
    return [] if same else [_departure(name, value, setting.value)]


def _departure(name: str, ours: Any, theirs: Any) -> str:
    return f"{name} is {_short(ours)}, the protocol has {_short(theirs)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
