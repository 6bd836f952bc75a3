"""The table of cases in docs/soundness.md: `python -m tests.cases.table`."""

from __future__ import annotations

import inspect

from saebench_recovery import registry
from saebench_recovery.schema import Finding
from tests.cases.examined import of_case
from tests.cases.expected import EXPECTED

WORDS = {"error": "refused", "invalid": "invalid", "caution": "caution", "note": "note"}


def table() -> str:
    """Every case with what it does, the verdict and the findings, the gravest first."""
    lines = ["| case | what it does | verdict | findings |", "|---|---|---|---|"]
    for kind, cases in EXPECTED.items():
        for name in cases:
            findings = sorted(of_case(kind, name), key=_gravity)
            verdict = WORDS[findings[0].level] if findings else "nothing found"
            names = ", ".join(f"`{one.name}`" for one in findings)
            what = (inspect.getdoc(registry.plugin_class(kind, name)) or "").partition("\n")[0]
            lines.append(f"| `{name}` | {what} | {verdict} | {names} |")
    return "\n".join(lines)


def _gravity(found: Finding) -> int:
    return list(WORDS).index(found.level)


if __name__ == "__main__":
    print(table())
