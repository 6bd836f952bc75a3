"""Rows of a local CSV, JSON or Parquet file, or of a Hugging Face data set, checked one by one.

Every task reads foreign data through here, so bad input always ends in one line that names the
source, the row (counted from 1, a CSV's header left out) and the column.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import (
    LARGEST,
    JSONSyntaxError,
    check_file,
    is_encodable,
    parse_json,
    read_json,
    reason,
    text_lines,
)

FILES = (".csv", ".json", ".jsonl", ".parquet")
SPLIT = "train"  # of a data set that has several, where none is named
PICKLES = "pandas"  # under this name `datasets` reads pickles from the current folder


class TableRow(BaseModel):
    """One row; the fields without a default are the columns that the table must have."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


Filled = Annotated[str, AfterValidator(_filled)]
"""Text with something other than white space in it."""

R = TypeVar("R", bound=TableRow)


def read_table(
    source: str,
    row: type[R],
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    subset: str | None = None,
) -> Iterator[R]:
    """Yield the rows of a table, each validated as a `row`.

    Args:
        source: a `.csv`, `.json` (an array of objects), `.jsonl` (all UTF-8) or `.parquet` file, or
            else what `datasets.load_dataset` takes: a hub name or a local folder.
        row: the pydantic model of a row.
        columns: the table's column for a field of `row`, where it has another name.
        split: of a data set; by default `train`, or the only one that there is.
        subset: configuration of a data set.

    Raises:
        UserError: no such table, split or field, or no rows; a column is missing (the needed and
            the found ones are named); or a row that is empty, badly encoded or does not fit (with
            its number).
    """
    named = columns or {}
    if unknown := [name for name in named if name not in row.model_fields]:
        known = ", ".join(row.model_fields)
        raise UserError(f"{source}: columns are named for {known}, not for {unknown[0]!r}")
    number = 0
    for number, cells in enumerate(_records(source, split, subset), 1):
        where = f"{source}, row {number}"
        found: dict[str, Any] = {}
        for name, field in row.model_fields.items():
            column = named.get(name, name)
            if column in cells:
                found[name] = cells[column]
            elif field.is_required() or name in named:
                fields = row.model_fields.items()
                needed = [named.get(n, n) for n, f in fields if f.is_required() or n in named]
                raise UserError(
                    f"{where}: no column {column!r}; needed: {needed}, found: {list(cells)}"
                )
        try:
            checked = row.model_validate(found)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            column = ".".join(str(part) for part in problem["loc"])
            wrong = problem["msg"].removeprefix("Value error, ")
            raise UserError(f"{where}: {column}: {wrong}") from None
        yield checked
    if number == 0:
        raise UserError(f"{source} has no rows")


def _records(source: str, split: str | None, subset: str | None) -> Iterator[Mapping[str, Any]]:
    match Path(source).suffix.lower():
        case ".parquet":
            yield from _parquet(source)
        case ".json":
            yield from _json(source)
        case ".jsonl":
            yield from _jsonl(source, text_lines(source, newline=""))
        case ".csv":
            yield from _csv(source, text_lines(source, newline=""))
        case _:
            yield from _dataset(source, split, subset)


def _csv(source: str, file: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(LARGEST)  # the module's own limit is 131 072 characters
    lines = csv.reader(file, strict=True)
    number = 0
    try:
        header = next(lines, [])
        if len(set(header)) != len(header):
            raise UserError(f"{source} has two columns of one name: {header}")
        for number, cells in enumerate(lines, 1):
            _check_utf8("".join(cells), f"{source}, row {number}")
            if len(cells) != len(header):
                have = f"{len(cells)} cells under {len(header)} columns" if cells else "is empty"
                raise UserError(f"{source}, row {number}: {have}")
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{source}, row {number + 1}: not CSV: {error}") from None


def _json(source: str) -> Iterator[Mapping[str, Any]]:
    try:
        rows = read_json(Path(source))
    except JSONSyntaxError as error:
        raise UserError(f"{error}; if each line is an object, name the file .jsonl") from None
    if not isinstance(rows, list):
        raise UserError(f"{source}: not a JSON array of objects")
    for number, cells in enumerate(rows, 1):
        if not isinstance(cells, dict):
            raise UserError(f"{source}, row {number}: not a JSON object")
        yield cells


def _jsonl(source: str, file: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(file, 1):
        _check_utf8(line, f"{source}, row {number}")
        try:
            cells = parse_json(line, f"{source}, row {number}")
        except JSONSyntaxError:
            if line.strip():
                raise
            raise UserError(f"{source}, row {number}: is empty") from None
        if not isinstance(cells, dict):
            raise UserError(f"{source}, row {number}: not a JSON object")
        yield cells


def _parquet(source: str) -> Iterator[Mapping[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    check_file(source)
    try:
        for rows in ParquetFile(source).iter_batches():
            yield from rows.to_pylist()
    except UnicodeDecodeError:
        raise UserError(f"{source} cannot be read as Parquet: a text in it is not UTF-8") from None
    except (OSError, ValueError, OverflowError, MemoryError, ArrowException) as error:
        raise UserError(f"{source} cannot be read as Parquet: {reason(error)}") from None


def _check_utf8(text: str, where: str) -> None:
    if not is_encodable(text):
        raise UserError(f"{where}: not UTF-8")


def _dataset(source: str, split: str | None, subset: str | None) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset  # takes a second to import

    if source == PICKLES:
        raise UserError(f"data set {source!r} is a format that can run code; name a file or folder")
    try:
        found = load_dataset(source, subset)
        wanted = split or (SPLIT if SPLIT in found or len(found) != 1 else next(iter(found)))
        if wanted in found:
            yield from found[wanted]
            return
    except Exception as error:  # of the library, of pyarrow and of the formats: no common base
        raise UserError(f"data set {source!r} cannot be loaded: {reason(error)}") from error
    raise UserError(
        f"data set {source!r} has no split {wanted!r}; it has {', '.join(map(str, found))}, of "
        "which the setting `split` names one"
    )
