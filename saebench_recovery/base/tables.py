"""Rows of a local CSV, JSONL or Parquet file, or of a Hugging Face data set, checked one by one.

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
    JSONSyntaxError,
    check_file,
    is_encodable,
    parse_json,
    reason,
    text_lines,
)

FILES = (".csv", ".jsonl", ".parquet")
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
    split: str = "train",
    subset: str | None = None,
) -> Iterator[R]:
    """Yield the rows of a table, each validated as a `row`.

    Args:
        source: a `.csv`, `.jsonl` (UTF-8) or `.parquet` file, or else what `datasets.load_dataset`
            takes: a hub name or a local folder; `split` and `subset` apply to the latter.
        row: the pydantic model of a row.
        columns: the table's column for a field of `row`, where it has another name.

    Raises:
        UserError: no such table or no rows; a column is missing (the needed and the found ones
            are named); or a row that is empty, badly encoded or does not fit (with its number).
    """
    number = 0
    for number, cells in enumerate(_records(source, split, subset), 1):
        where = f"{source}, row {number}"
        found: dict[str, Any] = {}
        for name, field in row.model_fields.items():
            column = (columns or {}).get(name, name)
            if column in cells:
                found[name] = cells[column]
            elif field.is_required():
                needed = [(columns or {}).get(name, name) for name in row.model_fields]
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


def _records(source: str, split: str, subset: str | None) -> Iterator[Mapping[str, Any]]:
    if Path(source).suffix.lower() not in FILES:
        yield from _dataset(source, split, subset)
        return
    if Path(source).suffix.lower() == ".parquet":
        yield from _parquet(source)
        return
    read = _csv if Path(source).suffix.lower() == ".csv" else _jsonl
    yield from read(source, text_lines(source, newline=""))


def _csv(source: str, file: Iterator[str]) -> Iterator[Mapping[str, Any]]:
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


def _dataset(source: str, split: str, subset: str | None) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset  # takes a second to import

    if source == PICKLES:
        raise UserError(f"data set {source!r} is a format that can run code; name a file or folder")
    try:
        yield from load_dataset(source, subset, split=split)
    except Exception as error:  # of the library, of pyarrow and of the formats: no common base
        raise UserError(f"data set {source!r} cannot be loaded: {reason(error)}") from error
