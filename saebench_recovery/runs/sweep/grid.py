"""A grid: fields of a run with several values each, and the runs that their product stands for.

Nothing here imports torch, and nothing that a file says is imported or run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import read_yaml
from saebench_recovery.base.settings import nearest, validate
from saebench_recovery.spec import RunSpec

PARTS, EXCLUDE = "parts", "exclude"
MOST = 100_000  # cells

Fields = Mapping[str, Any]
Axes = Mapping[str, Sequence[Any]]


def read_grid(file: Path, instead: Fields | None = None) -> list[RunSpec]:
    """The runs that a grid file asks for; `instead` are fields that go before the file's own.

    The file maps fields of `RunSpec` to a value or a list of values. `parts`, a list of such
    mappings, makes a product of each of them over the fields beside it; `exclude`, a list of them
    too, takes out the runs that have all of an entry's values.

    Raises:
        UserError: the file cannot be read, a field or value does not fit, or there is no run.
    """
    what, content = f"grid {str(file)!r}", read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{what} is not a mapping of fields to values")
    common = {k: v for k, v in content.items() if k not in (PARTS, EXCLUDE)}
    parts = [{**common, **part} for part in _mappings(content, PARTS, what)] or [common]
    excluded = [_axes(one, f"{what}, exclude") for one in _mappings(content, EXCLUDE, what)]
    axes = [_axes({**part, **(instead or {})}, what) for part in parts]
    if (count := sum(prod(map(len, one.values())) for one in axes)) > MOST:
        raise UserError(f"{what} has {count} cells, more than {MOST}")
    every = [spec for one in axes for spec in _product(one, what)]
    for number, one in enumerate(excluded, 1):
        if not (instead or any(_fits(spec, one) for spec in every)):
            raise UserError(f"{what}: entry {number} of {EXCLUDE} fits no cell")
    specs = [spec for spec in every if not any(_fits(spec, one) for one in excluded)]
    if not specs:
        raise UserError(f"{what} has no cell: all are excluded")
    return specs


def specs_of(fields: Fields) -> list[RunSpec]:
    """The runs of a product of fields; a list of tasks is of one run.

    Raises:
        UserError: a field or value does not fit, or there is no run.
    """
    tasks = {"tasks": [fields["tasks"]]} if "tasks" in fields else {}
    return list(_product(_axes({**fields, **tasks}, "run"), "run"))


def _mappings(content: Fields, name: str, what: str) -> list[dict[str, Any]]:
    found = content.get(name, [])
    if not (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
        raise UserError(f"{what}: {name} is not a list of mappings")
    return found


def _axes(fields: Fields, what: str) -> dict[str, list[Any]]:
    """Each field with the list of its values."""
    axes: dict[str, list[Any]] = {}
    for name, value in fields.items():
        if name not in RunSpec.model_fields:
            raise UserError(
                f"{what}: unknown field {name!r}; {nearest(name, RunSpec.model_fields)}"
            )
        axes[name] = value if isinstance(value, list) else [value]
        if name == "tasks":
            axes[name] = [[one] if isinstance(one, str) else one for one in axes[name]]
        if not axes[name]:
            raise UserError(f"{what} has no cell: {name} is empty")
    return axes


def _product(axes: Axes, what: str) -> Iterator[RunSpec]:
    for values in product(*axes.values()):
        yield validate(RunSpec, dict(zip(axes, values, strict=True)), what)


def _fits(spec: RunSpec, axes: Axes) -> bool:
    """Whether a run has one of the values of every field."""
    own = spec.model_dump(mode="json", include=set(axes))
    return all(own[name] in values for name, values in axes.items())
