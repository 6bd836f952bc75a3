"""Rows of a local CSV, JSONL or Parquet file, or of a Hugging Face data set, checked one by one.

Every task reads foreign data through here, so bad input always ends in one line that names the
source, the row (counted from 1, a CSV's header left out) and the column.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from saebench_recovery.base.errors import UserError

FILES = (".csv", ".jsonl", ".parquet")


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
            reason = problem["msg"].removeprefix("Value error, ")
            raise UserError(f"{where}: {column}: {reason}") from None
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
    try:
        # Bad bytes pass as surrogates, so that the row can be named.
        with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from read(source, file)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from None


def _csv(source: str, file: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    lines = csv.reader(file, strict=True)
    number = 0
    try:
        header = next(lines, [])
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
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"not JSON: {error.msg}" if line.strip() else "is empty"
            raise UserError(f"{source}, row {number}: {reason}") from None
        if not isinstance(cells, dict):
            raise UserError(f"{source}, row {number}: not a JSON object")
        yield cells


def _parquet(source: str) -> Iterator[Mapping[str, Any]]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        for rows in ParquetFile(source).iter_batches():
            yield from rows.to_pylist()
    except (OSError, ArrowInvalid) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{source} cannot be read as Parquet: {reason}") from None


def _check_utf8(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: not UTF-8") from None


def _dataset(source: str, split: str, subset: str | None) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset  # takes a second to import

    try:
        table = load_dataset(source, subset, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"data set {source!r} cannot be loaded: {reason}") from error
    yield from table
