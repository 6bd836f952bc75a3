"""A run is declared once: options, repeat command and identity follow from `RunSpec`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench_recovery.base.settings import validate
from saebench_recovery.cli import app
from saebench_recovery.cli.options import given_fields
from saebench_recovery.runs.run import run
from saebench_recovery.spec import OPTIONS, Declared, Limits, RunSpec, command, identity
from tests.fake_engine import Engine

CHANGED: dict[str, Any] = {
    "target": "another",
    "tasks": ("ioi",),
    "defense": "ablation",
    "attack": "unconstrained",
    "threat_model": "post",
    "budget": 0.75,
    "budget_unit": "absolute",
    "protocol": "published",
    "limits.drift": 0.1,
    "limits.decode": 0.1,
    "limits.fidelity": 0.1,
    "limits.kl": 0.1,
    "limits.ce": 0.1,
    "limits.retained": 0.1,
    "seed": 1,
    "limit": 8,
    "force_sae": True,
    "search_dtype": "bfloat16",
    "dtype": "bfloat16",
    "flops": 1e9,
    "device": "cuda",
    "batch_size": 4,
    "defense_config": {"latents": 3},
    "attack_config": {"steps": 3},
    "task_config": {"prompts": 3},
}
BY_NAME = {".".join(one.path): one for one in OPTIONS}


def with_value(name: str, value: Any) -> RunSpec:
    outer, _, inner = name.partition(".")
    return RunSpec.model_validate({outer: {inner: value} if inner else value})


def parsed(line: str) -> RunSpec:
    """What `saebench run` makes of a command line."""
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("saebench", "run")
    run_verb: Any = typer.main.get_command(app)
    context = run_verb.commands["run"].make_context("run", words)
    return validate(RunSpec, given_fields(context, context.params), "run")


def test_every_field_is_declared_once() -> None:
    assert BY_NAME.keys() == CHANGED.keys()
    assert {one.path[0] for one in OPTIONS} == set(RunSpec.model_fields)
    flags = [flag for one in OPTIONS for flag in (one.option.flag, one.option.short) if flag]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("one", OPTIONS, ids=list(BY_NAME))
def test_every_field_has_a_flag_a_description_and_a_variable(one: Declared) -> None:
    assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", one.option.flag)
    assert one.field.description
    assert one.option.identity in ("hashed", "merged", "no")
    assert re.fullmatch(r"SAEBENCH_[A-Z]+(_[A-Z]+)*", one.option.variable)


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_identity_follows_exactly_its_fields(name: str) -> None:
    before = identity(RunSpec(), {}, {})
    after = identity(with_value(name, CHANGED[name]), {}, {})
    assert (before != after) == (BY_NAME[name].option.identity == "hashed")


def test_identity_follows_settings_and_environment() -> None:
    values: list[dict[str, Any]] = [{}, {"latents": 3}, {"latents": True}]
    ids = {identity(RunSpec(), {"alpha": found}, {}) for found in values}
    assert len(ids | {identity(RunSpec(), {"alpha": {}}, {"target": "abc"})}) == 4


def test_a_number_has_one_spelling() -> None:
    ids = {identity(RunSpec(budget=1), {"a": [{"v": v}]}, {}) for v in (-2, -2.0)}
    assert ids == {identity(RunSpec(budget=1.0), {"a": ({"v": -2},)}, {})}
    assert identity(RunSpec(), {"v": -2.5}, {}) != identity(RunSpec(), {"v": -2}, {})


# --- the command that repeats a run -----------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
KEYS = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 10**29, 10**29 - 1) | FINITE | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
CONFIG = st.dictionaries(KEYS, VALUES, max_size=3)
POSITIVE = st.floats(0, 1e9, exclude_min=True)
SPECS = st.builds(
    RunSpec,
    target=NAMES,
    defense=NAMES,
    attack=NAMES,
    tasks=st.lists(NAMES, max_size=3).map(tuple),
    protocol=st.none() | NAMES,
    threat_model=st.sampled_from(["reclamp", "post"]),
    budget=st.floats(0, 10),
    budget_unit=st.sampled_from(["relative", "absolute"]),
    limits=st.builds(
        Limits,
        drift=st.floats(0, 9),
        decode=POSITIVE,
        fidelity=st.floats(0, 1),
        kl=POSITIVE,
        ce=POSITIVE,
        retained=st.floats(0, 1),
    ),
    seed=st.integers(0, 2**31 - 1),
    limit=st.none() | st.integers(1, 10**6),
    flops=st.none() | POSITIVE,
    defense_config=CONFIG,
    attack_config=CONFIG,
    task_config=CONFIG,
    force_sae=st.booleans(),
    dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    search_dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    device=NAMES,
    batch_size=st.none() | st.integers(1, 10**6),
)


@settings(max_examples=100, deadline=None)
@given(SPECS)
def test_the_repeat_command_is_the_same_spec(spec: RunSpec) -> None:
    assert parsed(command(spec)) == spec


def test_the_repeat_command_leaves_defaults_out() -> None:
    assert command(RunSpec(), ["mine.py"]) == (
        "saebench run --target organism --defense clamp --attack orthogonal "
        "--threat-model reclamp --budget 0.5 --seed 0 --plugin mine.py"
    )


def test_only_what_is_given_is_set() -> None:
    assert parsed("saebench run").model_fields_set == set()
    found = parsed("saebench run --max-drift 0.5 --batch-size auto -D value=-2 -T name=text")
    assert found == RunSpec(
        limits=Limits(drift=0.5), defense_config={"value": -2}, task_config={"name": "text"}
    )
    assert found.model_fields_set == {"limits", "batch_size", "defense_config", "task_config"}


# --- which runs share a folder ----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"defense_config": {"latents": 9}},
        {"attack_config": {"steps": 3}},
        {"tasks": ["alpha"]},
        {"seed": 1},
        {"limits": Limits(decode=0.5)},
    ],
)
def test_runs_with_other_numbers_do_not_share_a_folder(
    engine: Engine, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert run(out=tmp_path).identity != run(out=tmp_path, **change).identity


@pytest.mark.parametrize(
    "same",
    [
        {"defense_config": {"latents": 7}, "tasks": ["alpha"]},  # the target's own value, given
        {"tasks": ["alpha", "alpha"]},
        {"device": "cpu", "batch_size": 3, "tasks": "alpha"},
        {"tasks": ("alpha",), "budget": None, "limits": {"drift": 0.05}},
    ],
)
def test_giving_what_holds_anyway_is_the_same_run(
    engine: Engine, tmp_path: Path, same: dict[str, Any]
) -> None:
    assert run(out=tmp_path, tasks=["alpha"]).identity == run(out=tmp_path, **same).identity


def test_order_of_tasks_does_not_matter(engine: Engine, tmp_path: Path) -> None:
    one = run(out=tmp_path, tasks=["gamma", "beta", "alpha"])
    assert one == run(out=tmp_path)
