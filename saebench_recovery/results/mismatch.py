"""One thing that is stored and is not so."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from saebench_recovery.schema import Stored

LONG = 80  # characters of a value that are shown
# Relative, of what is added up in another order or on another machine: NumPy and SciPy choose
# their code by what a CPU has.
ROUNDING = 1e-9


class Mismatch(Stored):
    """What is stored in a field, and what was found in its place."""

    task: str = ""
    example: str = Field(default="", description="id of the valid flip, if it is one's own")
    field: str
    stored: str
    found: str

    @property
    def line(self) -> str:
        where = " ".join(part for part in (self.task, self.example, self.field) if part)
        return f"{where}: stored {self.stored}, found {self.found}"


def differing(
    field: str, stored: Any, found: Any, *, task: str = "", example: str = ""
) -> Sequence[Mismatch]:
    """A mismatch for every leaf in which two values differ by more than rounding."""
    if stored == found:
        return ()  # most are; making them plain takes longer than all else that reading a run does
    stored, found = _plain(stored), _plain(found)
    if isinstance(stored, dict) and isinstance(found, dict):
        return [
            mismatch
            for name in dict.fromkeys([*stored, *found])
            for mismatch in differing(
                f"{field}.{name}", stored.get(name), found.get(name), task=task, example=example
            )
        ]
    if _alike(stored, found):
        return ()
    return [
        Mismatch(task=task, example=example, field=field, stored=shown(stored), found=shown(found))
    ]


def same_number(one: float, other: float) -> bool:
    """Whether two numbers differ by rounding alone."""
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-12)


def _alike(stored: Any, found: Any) -> bool:
    """Whether plain values agree: counts and names exactly, other numbers but for rounding."""
    if isinstance(stored, float) and isinstance(found, float):
        return same_number(stored, found)
    if isinstance(stored, list) and isinstance(found, list):
        return len(stored) == len(found) and all(map(_alike, stored, found))
    if isinstance(stored, dict) and isinstance(found, dict):
        same_names = stored.keys() == found.keys()
        return same_names and all(_alike(value, found[name]) for name, value in stored.items())
    return bool(stored == found)


def shown(value: Any) -> str:
    """A value as text, cut where it is long."""
    # An edited file may hold NaN, which the one spelling of JSON refuses.
    text = value if isinstance(value, str) else json.dumps(_plain(value))
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
