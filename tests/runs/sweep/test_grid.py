"""A grid file is a product of fields, or one line that says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saebench_recovery.base.errors import UserError
from saebench_recovery.runs.sweep.grid import MOST, read_grid, specs_of
from saebench_recovery.spec import RunSpec


def written(folder: Path, content: Any) -> Path:
    file = folder / "grid.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def test_a_grid_is_the_product_of_its_lists(tmp_path: Path) -> None:
    content = {
        "tasks": ["ioi", ["tpp", "refusal"]],
        "defense": ["clamp", "steering"],
        "seed": [0, 1, 2],
        "defense_config": {"latents": 16},
        "budget": 0.25,
    }
    specs = read_grid(written(tmp_path, content))
    assert len(specs) == len({spec.model_dump_json() for spec in specs}) == 2 * 2 * 3
    assert {spec.tasks for spec in specs} == {("ioi",), ("tpp", "refusal")}
    assert {(spec.budget, spec.defense_config["latents"]) for spec in specs} == {(0.25, 16)}


def test_parts_lie_over_the_fields_beside_them_and_what_is_excluded_is_left_out(
    tmp_path: Path,
) -> None:
    content = {
        "defense": ["clamp", "steering"],
        "limit": 8,
        "parts": [{"tasks": "ioi"}, {"tasks": "tpp", "limit": 4}],
        "exclude": [{"defense": ["steering"], "tasks": "tpp"}],
    }
    file = written(tmp_path, content)
    found = {(*spec.tasks, spec.defense, spec.limit) for spec in read_grid(file)}
    assert found == {("ioi", "clamp", 8), ("ioi", "steering", 8), ("tpp", "clamp", 4)}
    assert {spec.limit for spec in read_grid(file, {"limit": "2"})} == {2}
    assert len(read_grid(file, {"defense": "clamp"})) == 2


def test_the_short_form_keeps_tasks_together() -> None:
    specs = specs_of({"attack": ["gcg", "orthogonal"], "tasks": ["ioi", "tpp"]})
    assert [(spec.attack, spec.tasks) for spec in specs] == [
        ("gcg", ("ioi", "tpp")),
        ("orthogonal", ("ioi", "tpp")),
    ]
    assert specs_of({}) == [RunSpec()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a mapping"),
        ("[]", "not a mapping"),
        ("defense: !!python/object/apply:os.system ['true']", "not YAML that holds data alone"),
        ({"defence": "clamp"}, "unknown field 'defence'; did you mean 'defense'"),
        ({"plugin": "mine.py"}, "unknown field 'plugin'"),
        ({"defense": []}, "has no cell: defense is empty"),
        ({"parts": {"seed": 1}}, "parts is not a list of mappings"),
        ({"exclude": ["clamp"]}, "exclude is not a list of mappings"),
        ({"parts": [{"exclude": []}]}, "unknown field 'exclude'"),
        ({"exclude": [{"defense": "clamp"}]}, "has no cell: all are excluded"),
        ({"exclude": [{"defense": "clmp"}]}, "entry 1 of exclude fits no cell"),
        ({"exclude": [{"defence": "clamp"}]}, "unknown field 'defence'"),
        ({"seed": ["one"]}, "seed is 'one'"),
        ({"tasks": [3]}, "tasks is 3"),
        ({"limits": {"drift": -1}}, "limits.drift is -1"),
        ({"seed": list(range(400)), "limit": list(range(1, 400))}, f"more than {MOST}"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_grid(written(tmp_path, content))
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*RunSpec.model_fields, "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from([*RunSpec.model_fields, "parts", "exclude", "x"])


@given(content=st.dictionaries(FIELDS, VALUES, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_mapping_gives_runs_or_one_line(tmp_path: Path, content: dict[str, Any]) -> None:
    line = ""
    try:
        assert all(isinstance(spec, RunSpec) for spec in read_grid(written(tmp_path, content)))
    except UserError as refused:
        line = str(refused)
    assert "\n" not in line
