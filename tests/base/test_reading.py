"""Whatever the bytes, a reader gives a value within its limits or one line, and nothing runs."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saebench_recovery.base import reading
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.printable import printable
from saebench_recovery.base.settings import canonical_json, parse_assignments
from saebench_recovery.base.tables import TableRow, read_table
from saebench_recovery.sae import gemma_scope
from saebench_recovery.sae.files import load_dictionary
from saebench_recovery.targets.presets import preset, title
from saebench_recovery.training.text import documents
from tests.saes import SITE

DEEP = 100_000
fuzzed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Bytes at random, and what looks like the format until it does not.
PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"',
    "a",
    "1",
    "\n",
    "- ",
    "&a ",
    "*a",
    "!!",
    "<<: ",
    "\\ud800",
]
content = st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=40).map(
    lambda pieces: "".join(pieces).encode()
)


class Row(TableRow):
    text: str


def table(source: str) -> list[Row]:
    return list(read_table(source, Row))


def refused(read: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 1000
    return line


def read_or_refused(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return None


def written(file: Path, text: str | bytes) -> Path:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@fuzzed
@given(content)
def test_any_bytes_are_a_value_or_one_line(tmp_path: Path, text: bytes) -> None:
    for read, name in ((reading.read_json, "a.json"), (reading.read_yaml, "a.yaml")):
        file = written(tmp_path / name, text)
        value = read_or_refused(partial(read, file))
        canonical_json(value)  # of JSON's kinds, whichever it was
    file = written(tmp_path / "a.safetensors", text)
    read_or_refused(lambda: reading.read_tensors(file))


@fuzzed
@given(content)
def test_any_table_is_rows_or_one_line(tmp_path: Path, text: bytes) -> None:
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        source = str(written(tmp_path / name, text))
        read_or_refused(partial(table, source))
    source = str(written(tmp_path / "a.txt", text))
    read_or_refused(lambda: list(documents(source)))


@fuzzed
@given(content)
def test_any_target_and_any_sae_is_read_or_one_line(tmp_path: Path, text: bytes) -> None:
    for name in ("a.yaml", "a.json"):
        file = written(tmp_path / name, text)
        read_or_refused(partial(preset, str(file)))
    (tmp_path / "sae").mkdir(exist_ok=True)
    written(tmp_path / "sae" / "sae_weights.safetensors", text)
    written(tmp_path / "sae" / "cfg.json", text)
    read_or_refused(lambda: load_dictionary(tmp_path / "sae", SITE))
    written(tmp_path / "params.npz", text)
    read_or_refused(lambda: load_dictionary(tmp_path / "params.npz", SITE))


@fuzzed
@given(st.text(max_size=60) | content.map(lambda text: text.decode("utf-8", "surrogateescape")))
def test_any_setting_is_a_value_or_one_line(text: str) -> None:
    values = read_or_refused(lambda: parse_assignments([f"key={text}"]))
    canonical_json(values)
    printable(text).encode()
    assert not any(unicodedata.category(c) == "Cc" for c in printable(text))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[" * DEEP, "nested more than 64 deep"),
        ("[" * 70 + "]" * 70, "nested more than 64 deep"),
        ('{"a":' * DEEP, "nested more than 64 deep"),
        ("9" * 5000, "a number of 5000 digits, more than 30"),
        ("1e999", "is not a finite number"),
        ("NaN", "is not a finite number"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"\\ud800": 1}', "half of a surrogate pair"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("{", "not JSON: "),
    ],
)
def test_json_beyond_the_limits(tmp_path: Path, text: str, line: str) -> None:
    assert line in refused(lambda: reading.read_json(written(tmp_path / "a.json", text)))
    if text != "{":  # that is text
        assert line in refused(lambda: parse_assignments([f"key={text}"]))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB, "more than 1000000 values"),
        (MERGES, "more than 1000000 values"),
        ("a: &a [*a]", "nested more than 64 deep"),
        ("[" * DEEP, "nested more than 64 deep"),
        ("a: " + "9" * 5000, "digits"),
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("a: !!python/object/apply:os.system [touch marker]", "not YAML that holds data alone"),
        ("a: !!python/name:os.system", "not YAML that holds data alone"),
        ("a: !!binary aGk=", "a bytes, which JSON does not have"),
        ("a: 2001-01-01", "a date, which JSON does not have; put it in quotes"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: !!int ''", "cannot read"),
        ("a: .inf", "not a finite number"),
        ("1: 2", "the key 1 is not text"),
        ("#" * (reading.LARGEST_YAML + 1), "bytes, more than"),
    ],
)
def test_yaml_beyond_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in refused(lambda: reading.read_yaml(written(tmp_path / "a.yaml", text)))
    assert not (tmp_path / "marker").exists()


def test_an_alias_that_stays_small_is_read(tmp_path: Path) -> None:
    file = written(tmp_path / "a.yaml", "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a")
    assert reading.read_yaml(file) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}


def places(folder: Path) -> Iterable[Path]:
    os.mkfifo(folder / "pipe.json")
    (folder / "circle.json").symlink_to(folder / "circle.json")
    yield folder / "pipe.json"
    yield folder / "circle.json"
    yield folder
    yield folder / ("long" * 100)
    yield Path("/dev/zero")
    yield folder / "nul\0"
    yield folder / "\udcff"


def test_places_that_no_file_is_read_from(tmp_path: Path) -> None:
    for place in places(tmp_path):
        assert "cannot read" in refused(partial(reading.read_json, place))
        assert "cannot read" in refused(partial(reading.read_tensors, place))
        assert not reading.is_file(place)
        assert title(f"{place}.yaml") == f"{place}.yaml"
        refused(partial(preset, f"{place}.yaml"))
        refused(partial(table, f"{place}.jsonl"))


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", 1000)
    source = str(written(tmp_path / "a.jsonl", '{"text": "' + "x" * 2000))
    assert "line 1: more than 1000 characters" in refused(partial(table, source))


def test_an_archive_that_is_larger_unpacked(tmp_path: Path) -> None:
    import numpy as np

    np.savez_compressed(tmp_path / gemma_scope.NPZ, W_enc=np.zeros(10**7))
    assert "bytes unpacked, from" in refused(lambda: load_dictionary(tmp_path, SITE))


@pytest.mark.parametrize(
    "cfg",
    [
        *([], None, 3, "text"),
        {"metadata": [1]},
        {"metadata": {"hook_name": 3}},
        {"metadata": {"model_from_pretrained_kwargs": "yes"}},
        {"architecture": ["standard"]},
        {"architecture": None},
        {"activation_fn": {"a": 1}},
        {"normalize_activations": []},
        {"architecture": "topk", "k": True, "activation_fn_kwargs": 3},
    ],
)
def test_a_configuration_of_other_types(tmp_path: Path, cfg: Any) -> None:
    from tests.layouts import write_sae

    write_sae(tmp_path / "sae", str(SITE))
    written(tmp_path / "sae" / "cfg.json", json.dumps(cfg))
    refused(lambda: load_dictionary(tmp_path / "sae", SITE))


@pytest.mark.parametrize("kind", ["complex64", "int32", "bool", "empty"])
def test_weights_that_are_no_real_numbers(tmp_path: Path, kind: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tests.layouts import write_sae

    file = write_sae(tmp_path / "sae", str(SITE)) / "sae_weights.safetensors"
    weights = load_file(file)
    made = weights["b_enc"][:0] if kind == "empty" else weights["b_enc"].to(getattr(torch, kind))
    save_file({**weights, "b_enc": made}, file)
    assert "should hold real numbers" in refused(lambda: load_dictionary(file.parent, SITE))
