"""One reader for CSV, JSON, Parquet and `datasets`: same rows, one clear line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.tables import Filled, TableRow, read_table

ROWS = [{"text": "A, b", "label": 3}, {"text": "two\nlines, ü", "label": 4}]


class Labelled(TableRow):
    text: Filled
    label: Filled
    note: str = ""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def written(tmp_path: Path, name: str, content: str | bytes) -> str:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(file)


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(tmp_path: Path, kind: str) -> str:
    if kind == "csv":
        return written(tmp_path, "a.csv", '\ufefftext,label\r\n"A, b",3\r\n"two\nlines, ü",4\r\n')
    if kind == "jsonl":
        return written(tmp_path, "a.jsonl", jsonl(ROWS))
    if kind == "json":
        return written(tmp_path, "a.json", json.dumps(ROWS, indent=1))
    if kind == "parquet":
        Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
        return str(tmp_path / "a.parquet")
    return str(Path(written(tmp_path, "folder/test.jsonl", jsonl(ROWS))).parent)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet", "datasets"])
def test_the_same_rows_from_every_kind_of_table(tmp_path: Path, kind: str) -> None:
    rows = list(read_table(table(tmp_path, kind), Labelled, split="test"))
    assert [row.model_dump() for row in rows] == [
        {"text": row["text"], "label": str(row["label"]), "note": ""} for row in ROWS
    ]


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet", "datasets"])
def test_other_column_names(tmp_path: Path, kind: str) -> None:
    swapped = {"text": "label", "label": "text"}
    rows = list(read_table(table(tmp_path, kind), Labelled, columns=swapped, split="test"))
    assert [row.text for row in rows] == ["3", "4"]


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet", "datasets"])
def test_a_missing_column_names_the_needed_and_the_found(tmp_path: Path, kind: str) -> None:
    source = table(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        list(read_table(source, Labelled, columns={"label": "class"}, split="test"))
    message = str(caught.value)
    assert "no column 'class'; needed: ['text', 'class'], found: ['text', 'label']" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1\n,2\n", "row 2: text: is empty"),
        ("a.csv", "text,label\na,1\n\nb,2\n", "row 2: is empty"),
        ("a.csv", "text,label\na\n", "row 1: 1 cells under 2 columns"),
        ("a.csv", b"text,label\na,1\nb\xff,2\n", "row 2: not UTF-8"),
        ("a.csv", b"te\xfft,label\na,1\n", r"row 1: no column 'text'.*te\\udcfft"),
        ("a.csv", 'text,label\na,1\n"b,2\n', "row 2: not CSV"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "", "has no rows"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": " ", "label": 1}\n',
            "row 2: text: is empty",
        ),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n', "row 2: is empty"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2: no column 'label'"),
        (
            "a.jsonl",
            '{"text": "a", "label": null}\n',
            "row 1: label: Input should be a valid string",
        ),
        ("a.jsonl", b'{"text": "\xe9", "label": 1}\n', "row 1: not UTF-8"),
        ("a.jsonl", '{"text": \n', "row 1: not JSON"),
        ("a.jsonl", "[1, 2]\n", "row 1: not a JSON object"),
        ("a.json", '{"text": "a"}', "not a JSON array of objects"),
        ("a.json", '[{"text": "a", "label": 1}, 2]', "row 2: not a JSON object"),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', r"not JSON: .*; if each line .* \.jsonl"),
        ("a.json", "[]", "has no rows"),
    ],
)
def test_bad_rows(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    source = written(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_table(source, Labelled))
    assert source in str(caught.value)
    str(caught.value).encode()  # can be printed


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        list(read_table(str(tmp_path / "none.csv"), Labelled))
    with pytest.raises(UserError, match="cannot be loaded"):
        list(read_table(str(tmp_path / "none"), Labelled))


def test_the_only_split_is_taken_and_another_one_is_not(tmp_path: Path) -> None:
    source = table(tmp_path, "datasets")
    assert len(list(read_table(source, Labelled))) == len(ROWS)
    with pytest.raises(UserError, match="has no split 'nowhere'; it has test, of which the sett"):
        list(read_table(source, Labelled, split="nowhere"))
    written(tmp_path, "folder/validation.jsonl", jsonl(ROWS))
    with pytest.raises(UserError, match=r"has no split 'train'; it has .*test"):
        list(read_table(source, Labelled))
    assert len(list(read_table(source, Labelled, split="validation"))) == len(ROWS)


def test_a_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    source = table(tmp_path, "csv")
    with pytest.raises(UserError, match=r"no column 'remark'; needed: .*'remark'"):
        list(read_table(source, Labelled, columns={"note": "remark"}))
    with pytest.raises(UserError, match="columns are named for text, label, note, not for 'class'"):
        list(read_table(source, Labelled, columns={"class": "label"}))


def test_a_cell_of_any_length(tmp_path: Path) -> None:
    long = "long, " * 50_000
    source = written(tmp_path, "a.csv", f'text,label\n"{long}",1\n')
    assert next(read_table(source, Labelled)).text == long


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    source = written(tmp_path, "a.csv", "text,label\na,1\n,2\n")
    assert next(read_table(source, Labelled)).text == "a"
