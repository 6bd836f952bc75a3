"""A task out of a table: a YAML file names its columns, and nothing in either is executed.

Read as a plugin is: when it is named, and before a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import read_yaml
from saebench_recovery.base.settings import validate
from saebench_recovery.base.splits import fraction_of
from saebench_recovery.base.tables import FILES, Filled, TableRow, read_table

ENDINGS = (".yaml", ".yml")
SELECTION = 0.3  # share of the clusters that latents are chosen on; the others are attacked
MOST = 100_000  # rows of a table

Column = Annotated[str, Field(min_length=1)]


class TaskFile(BaseModel):
    """What a task file may say; places are relative to its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str = Field(description="CSV, JSONL or Parquet file")
    prompt: Column = Field(default="prompt", description="column of the prompts")
    right: Column = Field(default="right", description="column of the right answers")
    wrong: tuple[Column, ...] = Field(
        default=("wrong",), min_length=1, max_length=64, description="columns of wrong answers"
    )
    cluster: Column | None = Field(
        default=None, description="column of the source item; default: each prompt is its own"
    )
    retain: str | None = Field(
        default=None,
        description="table with the same columns, of what a defense should leave alone; default: "
        "the target's own",
    )
    between: str = Field(
        default=" ", max_length=100, description="what stands between a prompt and its answer"
    )
    description: str = Field(default="", max_length=200, description="for `saebench list tasks`")


@dataclass(frozen=True)
class Item:
    """A row: answers begin with what stands between them and the prompt.

    `injected` is the answer that the wrong-target control asks for, where the row has too few
    wrong ones to choose it from.
    """

    number: int
    prompt: str
    right: str
    wrong: tuple[str, ...]
    cluster: str
    injected: str | None = None


@dataclass(frozen=True)
class Table:
    """A task file and its tables as they were read; no split `retain` means the target's own."""

    name: str
    description: str
    splits: Mapping[str, tuple[Item, ...]]
    files: tuple[Path, ...]


def task_name(file: Path) -> str:
    """What a task file's task is called: `my_task.yaml` holds `my-task`.

    Raises:
        UserError: the file's name is no name for a task.
    """
    if file.suffix not in ENDINGS or not re.fullmatch("[a-z][a-z0-9_]*", file.stem):
        raise UserError(
            f"{str(file)!r} does not name a task file; use small letters, digits and underscores, "
            "such as my_task.yaml"
        )
    return file.stem.replace("_", "-")


def read_task_file(file: Path) -> Table:
    """A task file with its tables.

    Raises:
        UserError: either cannot be read, or names what is not there.
    """
    name, what = task_name(file), f"task file {str(file)!r}"
    said = read_yaml(file)
    if not isinstance(said, dict):
        raise UserError(f"{what} holds no mapping; write table, prompt, right, wrong and so on")
    spec = validate(TaskFile, said, what)
    table = _place(file, spec.table, what)
    splits = _split(list(_with_injected(_items(spec, table), table)), table)
    files = [table]
    if spec.retain is not None:
        files.append(_place(file, spec.retain, what))
        splits["retain"] = tuple(_items(spec, files[-1]))
    places = tuple(place.resolve() for place in files)
    return Table(name, spec.description or f"from {file.name}", splits, places)


def _place(file: Path, place: str, what: str) -> Path:
    found = file.parent / place
    if found.suffix.lower() not in FILES:
        raise UserError(f"{what}: {place!r} is no table; allowed: a file in {', '.join(FILES)}")
    return found


def _items(spec: TaskFile, table: Path) -> list[Item]:
    columns = {"prompt": spec.prompt, "right": spec.right}
    columns |= {f"wrong_{i}": column for i, column in enumerate(spec.wrong)}
    columns |= {} if spec.cluster is None else {"cluster": spec.cluster}
    cells: Any = dict.fromkeys(columns, (Filled, ...))
    row: type[TableRow] = create_model("Row", __base__=TableRow, **cells)
    read = islice(read_table(str(table), row, columns=columns), MOST + 1)
    items = [_item(spec, number, made.model_dump(), table) for number, made in enumerate(read, 1)]
    if len(items) > MOST:
        raise UserError(f"{table} has more than {MOST} rows; leave some out")
    return items


def _item(spec: TaskFile, number: int, cells: dict[str, str], table: Path) -> Item:
    right, *wrong = (
        spec.between + cells[name].strip()
        for name in ("right", *(f"wrong_{i}" for i in range(len(spec.wrong))))
    )
    if len({right, *wrong}) <= len(wrong):
        raise UserError(f"{table}, row {number}: an answer stands twice")
    prompt = cells["prompt"]
    return Item(number, prompt, right, tuple(wrong), cells.get("cluster", prompt))


def _split(items: Sequence[Item], table: Path) -> dict[str, tuple[Item, ...]]:
    """Three in ten of the clusters select; which ones, the hashes of their names decide."""
    clusters = sorted({item.cluster for item in items}, key=fraction_of)
    if len(clusters) < 2:
        raise UserError(
            f"{table} has one cluster alone; latents are chosen on others than attacked"
        )
    selecting = set(clusters[: ceil(SELECTION * len(clusters))])
    return {
        "selection": tuple(item for item in items if item.cluster in selecting),
        "evaluation": tuple(item for item in items if item.cluster not in selecting),
    }


def _with_injected(items: Sequence[Item], table: Path) -> Iterator[Item]:
    """The items, each that has one wrong answer with a strange one: another row's right answer."""
    answers = sorted({item.right for item in items})
    for item in items:
        if len(item.wrong) > 1:
            yield item
            continue
        strange = [one for one in answers if one not in (item.right, *item.wrong)]
        if not strange:
            raise UserError(
                f"{table}, row {item.number}: has one wrong answer, and no other row has a right "
                "answer that could be injected in its place; name a second column of wrong answers"
            )
        chosen = strange[int(fraction_of(item.prompt) * len(strange))]
        yield replace(item, injected=chosen)
