"""Task files: what they say, what is refused, and which split a row falls into."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.task_file import Item, Table, _split, read_task_file

ROWS = "prompt,right,wrong,other,item\n" + "".join(
    f"Prompt {i} says,yes{i},no{i},perhaps{i},{i % 5}\n" for i in range(10)
)
LONE = "prompt,right,wrong,other\np,a,b,c\n"


def read(folder: Path, said: str, rows: str = ROWS, name: str = "my_task.yaml") -> Table:
    (folder / "rows.csv").write_text(rows, "utf-8")
    (folder / name).write_text(said, "utf-8")
    return read_task_file(folder / name)


def items(table: Table) -> list[Item]:
    return [*table.splits["selection"], *table.splits["evaluation"]]


def test_columns_and_tables_are_as_named(tmp_path: Path) -> None:
    said = "{table: rows.csv, wrong: [wrong, other], cluster: item, retain: rows.csv, between: ''}"
    table = read(tmp_path, said)
    first = min(items(table), key=lambda item: item.number)
    assert first == Item(1, "Prompt 0 says", "yes0", ("no0", "perhaps0"), "0")
    assert table.name == "my-task"
    assert len(table.splits["retain"]) == 10
    assert table.files == (tmp_path / "rows.csv",) * 2
    split = {name: {item.cluster for item in part} for name, part in table.splits.items()}
    assert (len(split["selection"]), len(split["evaluation"])) == (2, 3)
    assert not split["selection"] & split["evaluation"]


def test_a_lone_wrong_answer_gets_another_row_s_right_one_to_inject(tmp_path: Path) -> None:
    for item in items(read(tmp_path, "table: rows.csv")):
        assert item.right == f" yes{item.number - 1}"
        assert item.injected not in (None, item.right)
        assert str(item.injected).startswith(" yes")
    assert all(
        i.injected is None
        for i in items(read(tmp_path, "{table: rows.csv, wrong: [wrong, other]}"))
    )


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)), st.integers(2, 12))
def test_the_split_does_not_follow_the_order_of_rows(order: list[int], clusters: int) -> None:
    rows = [Item(i, f"p{i}", " a", (" b", " c"), str(i % clusters)) for i in range(12)]
    plain, shuffled = (_split(each, Path("t.csv")) for each in (rows, [rows[i] for i in order]))
    assert {k: set(v) for k, v in plain.items()} == {k: set(v) for k, v in shuffled.items()}
    assert all(plain.values())


@pytest.mark.parametrize(
    ("said", "rows", "line"),
    [
        ("tabel: rows.csv", ROWS, "unknown key 'tabel'; did you mean 'table'? allowed: table, "),
        ("[1]", ROWS, "holds no mapping; write table, prompt, right, wrong and so on"),
        ("prompt: prompt", ROWS, "table is missing; allowed: text"),
        ("table: rows.txt", ROWS, "'rows.txt' is no table; allowed: a file in .csv, .json, .jsonl"),
        ("table: none.csv", ROWS, "none.csv': No such file"),
        ("{table: rows.csv, wrong: no}", ROWS, "wrong is False; allowed: a list (each text)"),
        ("{table: rows.csv, prompt: promt}", ROWS, "row 1: no column 'promt'; needed: ['promt'"),
        ("{table: rows.csv, wrong: [right]}", ROWS, "row 1: an answer stands twice"),
        ("table: rows.csv", "prompt,right,wrong\na, ,c\n", "row 1: right: is empty"),
        ("table: rows.csv", "prompt,right,wrong\n", "has no rows"),
        ("{table: rows.csv, wrong: [right, wrong], right: other}", LONE, "has one cluster alone"),
        ("table: rows.csv", "prompt,right,wrong\np,a,b\nq,b,a\n", "name a second column"),
        ("table: !!python/object/apply:os.getcwd []", ROWS, "not YAML that holds data alone"),
        ("&a [*a]", ROWS, "nested more than 64 deep"),
    ],
)
def test_what_does_not_fit_is_one_line(said: str, rows: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, said, rows)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["My Task.yaml", "task.json", "1.yaml"])
def test_a_name_that_no_task_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not name a task file; use small letters"):
        read(tmp_path, "table: rows.csv", name=name)
