"""In what runs that are compared were not on equal footing, besides the attack itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saebench_recovery.base.hashing import hash_text
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.task_run import TaskRun

# What the spec says of a run that should be the same in all.
SPEC_FIELDS = ("target", "threat_model", "budget", "budget_unit", "seed", "limits", "flops")
# What an attack aims at and where it may act; the rest of its settings is the attack itself.
ATTACK_SCOPE = ("sites", "positions", "objective", "shared")
LONG = 40  # characters of a value above which only its hash is shown


def differences(runs: Sequence[TaskRun]) -> list[str]:
    """A line for every circumstance that is not the same in all runs that have it."""
    circumstances = [_circumstances(run) for run in runs]
    lines = []
    for name in dict.fromkeys(name for of_run in circumstances for name in of_run):
        found = [of_run[name] for of_run in circumstances if name in of_run]
        if len(set(map(repr, found))) == 1:
            continue  # most are, and to show them takes longer
        values = [_shown(value) for value in found]
        if len(set(values)) > 1:
            lines.append(f"{name}: {' | '.join(values)}")
    return lines


def _circumstances(run: TaskRun) -> dict[str, Any]:
    """Everything but the attack itself that should be the same in all runs, by name."""
    spec, row, provenance = run.run.spec, run.row, run.run.provenance
    return _flat(
        {
            **{name: spec.get(name) for name in SPEC_FIELDS},
            "evaluation examples": row.examples.n,
            "defense": {
                "name": row.defense,
                "hook point": run.config["site"],
                **run.config["defense"],
                "latents defended": canonical_json(row.features),
            },
            "task": run.config["task"],
            "attack": {k: v for k, v in run.config["attack"].items() if k in ATTACK_SCOPE},
            "device": provenance.device,
            "dtype": provenance.dtype,
            "versions": provenance.packages,
            "files of the target": provenance.target_hash,
            "commit of": provenance.commits,
            "data": provenance.data_hash,
            "code of the harness": spec.get("environment", {}).get("harness"),
        }
    )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, so that a difference is named by the setting that differs."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name} ")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _shown(value: Any) -> str:
    """A value as text; of a long one its hash, by which two can be told apart."""
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= LONG else hash_text(text)[:8]
