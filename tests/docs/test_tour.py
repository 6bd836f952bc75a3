"""The notebook runs from top to bottom, and shows what it says it shows."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"
WRITES = "%%writefile "


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(TOUR.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def shown(source: str, names: dict[str, Any]) -> str:
    """What a notebook shows below a cell: the value of its last expression as HTML."""
    if source.startswith(WRITES):
        line, _, text = source.partition("\n")
        Path(line.removeprefix(WRITES)).write_text(text, "utf-8")
        return ""
    *before, last = ast.parse(source).body
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
        return ""
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return str(value._repr_html_())


def test_no_output_is_stored() -> None:
    assert all(not c["outputs"] and c["execution_count"] is None for c in code_cells())


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    _, checked, ran, curve, compared, attributed, frame = [
        shown("".join(cell["source"]), names) for cell in code_cells()
    ]
    assert "ioi" in checked
    row = names["row"]
    assert row.recovery.k > 0
    assert f"{row.examples.valid} of {row.examples.base}" in ran
    assert "injection-as-easy" in ran or row.controls.wrong_target.k < row.recovery.k
    assert "recovery" in curve
    assert "negation against gcg" in compared
    assert "SAE residual" in attributed
    assert "soft-suffix" in frame
