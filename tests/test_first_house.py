"""The second house gives the first one's figures: `tests/data/first-house.jsonl`.

A line there is [run, task, figure, value]; the run is "defense / attack / tasks / limit". A figure
that is changed on purpose has no line any more, and the commit that took it out says why. The
figures are compared under the first house's budget unit, its choice between two names (ioi) and its
strength of steering.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery import run
from tests.first_house import figures

FIGURES = Path(__file__).parent / "data" / "first-house.jsonl"
TOLERANCE = 1e-5
ROUNDING = 2e-5  # the drift of an exact constraint: below, it is float32's own


@cache
def frozen() -> dict[str, list[tuple[str, str, Any]]]:
    """What the first house said of each run: (task, figure, value)."""
    lines = defaultdict(list)
    for line in FIGURES.read_text().splitlines():
        name, task, figure, value = json.loads(line)
        lines[name].append((task, figure, value))
    return lines


@pytest.mark.parametrize("name", sorted(frozen()))
def test_the_same_figures(name: str, tmp_path: Path) -> None:
    defense, attack, tasks, limit = name.split(" / ")
    examples = None if limit == "None" else int(limit)
    expected = frozen()[name]
    result = run(
        "organism",
        defense,
        attack,
        tasks.split(),
        limit=examples,
        out=tmp_path,
        budget_unit="relative",
        task_config={"against": "subject"} if tasks == "ioi" else {},
        defense_config={"strength": 1.15} if defense == "steering" else {},
    )
    rows = {row.task: figures(row) for row in result.rows}
    differing = [
        (task, figure, value, rows[task].get(figure))
        for task, figure, value in expected
        if not close(rows[task].get(figure), value, ROUNDING if "drift" in figure else 1e-9)
    ]
    assert not differing


def close(ours: Any, theirs: Any, nothing: float) -> bool:
    """Counts and words equal, numbers within `TOLERANCE`, relative, or both below `nothing`."""
    if isinstance(ours, list) and isinstance(theirs, list):
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) and all(close(*pair, nothing) for pair in pairs)
    if isinstance(theirs, float) and isinstance(ours, int | float):
        return math.isclose(ours, theirs, rel_tol=TOLERANCE, abs_tol=nothing)
    return bool(ours == theirs)
