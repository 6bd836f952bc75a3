"""Requests of a table: contexts before them, source items that stay together, what is missing."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from saebench_recovery.tasks._requests import Table, tabulated

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.splits import split_of

PARTS: tuple[Literal["selection"], Literal["evaluation"]] = ("selection", "evaluation")


def table(tmp_path: Path, rows: list[dict[str, Any]], **columns: str) -> Table:
    """A JSON array of requests as HarmBench and JailbreakBench lay them out."""
    (tmp_path / "asked.json").write_text(json.dumps(rows))
    return Table(str(tmp_path / "asked.json"), columns={"request": "Goal", **columns})


def test_contexts_stand_before_requests(tmp_path: Path) -> None:
    rows = [
        {"Goal": f"Sum up {i}.", "ContextString": context}
        for i, context in enumerate(("A page.", "", None) * 20)
    ]
    made = table(tmp_path, rows, context="ContextString")
    both = [*tabulated(made, "selection"), *tabulated(made, "evaluation")]
    assert len(both) == 60
    assert {r.text for r in both if "A page." in r.text} == {
        f"A page.\n\n---\n\nSum up {i}." for i in range(0, 60, 3)
    }
    assert not tabulated(table(tmp_path, rows), "evaluation")[0].text.startswith("A page")


def test_requests_of_a_source_item_stand_in_one_split(tmp_path: Path) -> None:
    rows = [{"Goal": f"Do {i}.", "Category": f"theme {i // 4}"} for i in range(80)]
    made = table(tmp_path, rows, item="Category")
    selection, evaluation = ({request.item for request in tabulated(made, part)} for part in PARTS)
    assert not selection & evaluation
    assert len(selection | evaluation) == 20


def test_a_request_that_stands_twice_is_asked_once(tmp_path: Path) -> None:
    made = table(tmp_path, [{"Goal": "Do it."}, {"Goal": "Do that."}] * 9)
    asked: list[str] = []
    for part in PARTS:
        with suppress(UserError):  # a part may be left without any
            asked += [request.text for request in tabulated(made, part)]
    assert sorted(asked) == ["Do it.", "Do that."]


def test_a_table_that_leaves_a_part_without_requests(tmp_path: Path) -> None:
    made = table(tmp_path, [{"Goal": "Do it."}])
    taken = split_of("Do it.", selection=0.3, evaluation=0.7)
    (left,) = (part for part in PARTS if part != taken)
    with pytest.raises(UserError, match=f"too few requests: none is left for {left}"):
        tabulated(made, left)


def test_a_named_column_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'Page'; needed: \['Goal', 'Page'\]"):
        tabulated(table(tmp_path, [{"Goal": "Do it."}], context="Page"), "selection")
