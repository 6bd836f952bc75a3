"""Every causal architecture of transformers, tiny and random: run exactly, or refused in a line.

`python -m tests.model.architectures > docs/architectures.md` writes the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import KINDS
from saebench_recovery.model.agreement import check_agreement
from saebench_recovery.model.language_model import LanguageModel
from tests.model.tiny_architectures import CannotBeTiny, quiet, registered, tiny
from tests.tiny import TinyTokenizer

HEAD = """# Architectures

A model is run exactly or refused. Each row is a random tiny model, with transformers {version} on a
CPU in float32, held to the reference engine as every target is when it is loaded (`soundness.md`):
beside a longer prompt, across a cache boundary, in a tail, and over generated tokens, with an edit
at every hook point of a block. The error is the largest relative one of all these. It says nothing
of a model that is loaded with other settings, which is checked itself.

`python -m tests.model.architectures > docs/architectures.md` writes this page.

{exact} run exactly, {refused} are refused, of {rest} more no tiny model can be made from a
configuration.

## Exact

| `model_type` | class | largest error | hook points |
|---|---|---|---|
"""
REFUSED = """
## Refused

| `model_type` | what `saebench` says |
|---|---|
"""
REST = """
## Not tried

| `model_type` | why there is no tiny model |
|---|---|
"""


@dataclass(frozen=True)
class Outcome:
    """`error` is that of an architecture that is run, `line` what is said of any other."""

    model_type: str
    made: str | None = None
    error: float | None = None
    kinds: tuple[str, ...] = ()
    line: str = ""


def outcome(model_type: str) -> Outcome:
    """What becomes of an architecture when its model is loaded."""
    try:
        model = tiny(model_type)
    except CannotBeTiny as why:
        return Outcome(model_type, line=str(why))
    made = type(model).__name__
    try:
        with quiet():
            found = check_agreement(LanguageModel("a tiny model", model, TinyTokenizer()))
    except UserError as refusal:
        return Outcome(model_type, made, line=str(refusal))
    kinds = tuple(kind for kind in KINDS if kind not in found.refused)
    return Outcome(model_type, made, max(found.errors.values()), kinds)


def page(outcomes: list[Outcome]) -> str:
    """The table, as Markdown."""
    exact = [one for one in outcomes if one.error is not None]
    refused = [one for one in outcomes if one.error is None and one.made]
    rest = [one for one in outcomes if one.made is None]
    counts = {"exact": len(exact), "refused": len(refused), "rest": len(rest)}
    lines = [HEAD.format(version=transformers.__version__, **counts)]
    for one in exact:
        points = "all" if len(one.kinds) == len(KINDS) else ", ".join(f"`{k}`" for k in one.kinds)
        lines.append(f"| `{one.model_type}` | {one.made} | {one.error:.0e} | {points} |\n")
    for title, group in ((REFUSED, refused), (REST, rest)):
        lines += [title, *(f"| `{o.model_type}` | {o.line.replace('|', ' ')} |\n" for o in group)]
    return "".join(lines)


if __name__ == "__main__":
    print(page([outcome(model_type) for model_type in registered()]), end="")
