"""Identity against spec: recomputed from what is stored and from what is installed here.

A run that another version of the harness made is held to its own settings: an option that came
later has its default, and what the stored spec says of the others counts. That it was another
version is a note, as the numbers themselves are recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import validate
from saebench_recovery.results.mismatch import differing
from saebench_recovery.runs.fingerprint import harness_fingerprint
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.runs.verify.report import Findings
from saebench_recovery.schema import RunResult
from saebench_recovery.spec import RunSpec, identity

# Other versions of these may make other numbers, and replaying tells whether they do.
OF_THIS_PLACE = ("harness", "packages")
HASH_SHOWN = 8  # hex digits of a harness


def same_harness(result: RunResult) -> bool:
    """Whether this very version of the harness made a run."""
    return environment_of(result).get("harness") == _harness()


@cache
def _harness() -> str:
    """Of the code that this process runs, read once for all entries of a board."""
    return harness_fingerprint()


def environment_of(result: RunResult) -> Mapping[str, Any]:
    """Hashes and versions of all that a run was made with."""
    stored = result.spec.get("environment")
    return stored if isinstance(stored, dict) else {}


def planned(result: RunResult, findings: Findings) -> Plan | None:
    """The plan of the stored spec as it would be made here, once it is held to what is stored.

    None if no plan can be made of it, as where a plugin is not known here.
    """
    stored, same = environment_of(result), same_harness(result)
    given = {k: v for k, v in result.spec.items() if k in RunSpec.model_fields}
    try:
        plan = Plan.of(check_names(validate(RunSpec, given, "the stored spec")))
        found = _identity(plan, stored)
        plan = plan if same else _as_stored(plan, result)
        record = plan.record()
    except UserError as error:
        findings.could_not_check("identity and replay", str(error))
        return None
    _same_environment(stored, plan.environment, findings)
    findings.notes += _versions(result, plan.environment)
    spec = {name: value for name, value in result.spec.items() if name != "environment"}
    record = {name: value for name, value in record.items() if name != "environment"}
    findings.add(differing("spec", spec, record if same else _shared(record, spec)))
    if found != result.identity and same:
        findings.add(differing("identity", result.identity, found))
    elif found != result.identity:
        findings.notes.append(f"identity: as this version counts settings it is {found}")
    made_by = result.provenance
    findings.add(
        differing("provenance.target_hash", made_by.target_hash, plan.environment["target"])
    )
    findings.add(differing("provenance.packages", made_by.packages, stored.get("packages")))
    return plan


def _identity(plan: Plan, environment: Mapping[str, Any]) -> str:
    try:
        return identity(plan.spec, plan.settings, environment)
    except ValueError as error:  # NaN, which no environment holds
        return str(error)


def _as_stored(plan: Plan, result: RunResult) -> Plan:
    """The plan under the resolved settings that a run states, whatever is the default today."""
    resolved = result.spec.get("resolved", {})
    settings = {}
    for name, today in plan.settings.items():
        own = [one for label, one in resolved.items() if label.partition("/")[0] == name]
        if not own:
            raise UserError(f"the spec does not say the settings of task {name!r}")
        of_plugins = {k: _common([one[k] for one in own]) for k in ("task", "defense", "attack")}
        settings[name] = {**today, **of_plugins}
    return replace(plan, settings=settings)


def _common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all variants of a task have; where they differ is what makes them variants."""
    first, *others = settings
    return {k: v for k, v in first.items() if all(one.get(k) == v for one in others)}


def _shared(found: Any, stored: Any) -> Any:
    """What was found, without keys that the stored value does not have."""
    if not (isinstance(found, Mapping) and isinstance(stored, Mapping)):
        return found
    return {name: _shared(value, stored[name]) for name, value in found.items() if name in stored}


def _same_environment(
    stored: Mapping[str, Any], here: Mapping[str, Any], findings: Findings
) -> None:
    for name in dict.fromkeys([*here, *stored]):
        pair = stored.get(name), here.get(name)
        if name not in OF_THIS_PLACE or not isinstance(pair[0], type(pair[1])):
            findings.add(differing(f"spec.environment.{name}", *pair))


def _versions(result: RunResult, here: Mapping[str, Any]) -> list[str]:
    """A line where the run was made with other code or packages than are here."""
    stored = environment_of(result)
    if all(stored.get(name) == here[name] for name in OF_THIS_PLACE):
        return []
    commit = result.provenance.git_commit
    at = "" if commit is None else f" at commit {commit}"
    return [f"made with {_named(stored)}{at}; recomputed with {_named(here)}"]


def _named(environment: Mapping[str, Any]) -> str:
    packages = environment.get("packages")
    versions = packages.items() if isinstance(packages, Mapping) else ()
    named = ", ".join(f"{name} {version}" for name, version in versions)
    return f"{named} (harness {str(environment.get('harness'))[:HASH_SHOWN]})"
