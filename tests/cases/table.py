"""Writes docs/soundness-cases.md: `python -m tests.cases.table`. Tests hold it line by line."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from saebench_recovery import registry
from saebench_recovery.base.catalogue import Kind
from saebench_recovery.schema import Finding
from tests.cases.examined import LIMIT, STEPS, of_case
from tests.cases.expected import EXPECTED
from tests.cases.searched import SEARCHED, SEARCHES, of_search, outcome
from tests.journal import Scored

PAGE = Path(__file__).parents[2] / "docs" / "soundness-cases.md"
WORDS = {"error": "refused", "invalid": "invalid", "caution": "caution", "note": "note"}
INTRO = f"""# Cases that break a rule

<!-- written by `python -m tests.cases.table` -->

What `saebench check` says of each plugin of `tests/cases/` that breaks one of the
[rules](soundness.md), on `ioi` of `organism` with {LIMIT} prompts: a defense against
`unconstrained`, an attack against `clamp`, a task under both. *Refused* is one line and exit code 2
of `saebench run`.

| case | what it does | verdict | findings |
|---|---|---|---|
"""

SECOND = f"""
## What shows in a search only

Attacks that pass the check: what a run against `clamp` says, on {SEARCHED} prompts, beside a row
of `orthogonal` in {STEPS} steps. Where a trick has no effect, no figure of the row is another than
without it, or the row is only the weaker for it.

| case | what it does | verdict | flag, or why there is no effect |
|---|---|---|---|
"""


def page() -> str:
    lines = [line_of(kind, name, of_case(kind, name)) for kind, name in cases()]
    found = [line_of_search(name, of_search(name)) for name in SEARCHES]
    return "\n".join([INTRO + "\n".join(lines), SECOND + "\n".join(found), ""])


def cases() -> Iterator[tuple[Kind, str]]:
    return ((kind, name) for kind, of_kind in EXPECTED.items() for name in of_kind)


def line_of(kind: Kind, name: str, found: tuple[Finding, ...]) -> str:
    """A case with what it does, the verdict and the findings, the gravest first."""
    findings = sorted(found, key=_gravity)
    verdict = WORDS[findings[0].level] if findings else "nothing found"
    names = ", ".join(f"`{one.name}`" for one in findings)
    return f"| `{name}` | {_what(kind, name)} | {verdict} | {names} |"


def line_of_search(name: str, row: Scored) -> str:
    """A case that shows in a search, with what it does and what becomes of it."""
    verdict, words = outcome(name, row)
    return f"| `{name}` | {_what('attack', name)} | {verdict or 'gets away'} | {words} |"


def _what(kind: Kind, name: str) -> str:
    return (inspect.getdoc(registry.plugin_class(kind, name)) or "").partition("\n")[0]


def _gravity(found: Finding) -> int:
    return list(WORDS).index(found.level)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
