"""Identity against spec: recomputed from what is stored and from what is installed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import validate
from saebench_recovery.results.mismatch import differing, shown
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.runs.verify.report import Findings
from saebench_recovery.schema import RunResult
from saebench_recovery.spec import RunSpec, identity

# Other versions of these make other numbers, and that is not the run's fault.
OF_THIS_PLACE = ("harness", "packages")


def planned(result: RunResult, findings: Findings) -> Plan | None:
    """The plan of the stored spec as it would be made here, once it is held to what is stored.

    None if no plan can be made of it, as where a plugin is not known here.
    """
    given = {k: v for k, v in result.spec.items() if k in RunSpec.model_fields}
    try:
        plan = Plan.of(check_names(validate(RunSpec, given, "the stored spec")))
        record = plan.record()
    except UserError as error:
        findings.could_not_check("identity and replay", str(error))
        return None
    stored = result.spec.get("environment")
    stored = stored if isinstance(stored, dict) else {}
    _same_environment(stored, plan.environment, findings)
    rest = {name: value for name, value in record.items() if name != "environment"}
    given = {name: value for name, value in result.spec.items() if name != "environment"}
    findings.add(differing("spec", given, rest))
    try:
        found = identity(plan.spec, plan.settings, stored)
    except ValueError as error:  # NaN, which no environment holds
        found = str(error)
    if found != result.identity and stored.get("harness") == plan.environment["harness"]:
        findings.add(differing("identity", result.identity, found))
    elif found != result.identity:
        why = f"another harness made {result.identity}, and this one's settings give {found}"
        findings.could_not_check("identity", why)
    made_by = result.provenance
    findings.add(
        differing("provenance.target_hash", made_by.target_hash, plan.environment["target"])
    )
    findings.add(differing("provenance.packages", made_by.packages, stored.get("packages")))
    return plan


def _same_environment(
    stored: Mapping[str, Any], here: Mapping[str, Any], findings: Findings
) -> None:
    for name, found in here.items():
        if name not in OF_THIS_PLACE or not isinstance(stored.get(name), type(found)):
            findings.add(differing(f"spec.environment.{name}", stored.get(name), found))
        elif stored[name] != found:
            why = f"made with {shown(stored[name])}, here is {shown(found)}"
            findings.could_not_check(f"environment {name}", why)
    for name in stored.keys() - here.keys():
        findings.add(differing(f"spec.environment.{name}", stored[name], None))
