"""`key=value` settings are read as JSON and refused in one line that says what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import canonical_json, parse_assignments, validate


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    latents: int = Field(default=32, ge=1)
    value: float | tuple[float, ...] | None = None
    site: str | None = None
    needed: bool


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-0.5", -0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("[1, 2.5]", [1, 2.5]),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
        ('"3"', "3"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_are_json_or_text(text: str, value: Any) -> None:
    assert parse_assignments([f"key={text}"]) == {"key": value}


@pytest.mark.parametrize("text", ["key", "=3", " = 3"])
def test_assignment_needs_key_and_equals(text: str) -> None:
    with pytest.raises(UserError, match="key=value"):
        parse_assignments([text])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"latnts": 3}, ["unknown key 'latnts'", "did you mean 'latents'", "site, needed"]),
        (
            {"latents": "many"},
            ["'many'; allowed: a whole number at least 1 (default 32)"],
        ),
        ({"latents": 0}, ["latents is 0; allowed: a whole number at least 1"]),
        ({"value": "x"}, ["a number or a list (each a number) or null (default null)"]),
        ({"value": float("inf")}, ["value is inf: must be finite"]),
        ({"value": "nan"}, ["value is nan: must be finite"]),
        ({"needed": None}, ["needed"]),
        ({"latents": 0, "value": "x"}, ["latents is 0", "value is 'x'"]),
    ],
)
def test_refusal_is_one_telling_line(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        validate(Config, {"needed": True, **values}, "defense 'mine'")
    line = str(caught.value)
    assert line.startswith("defense 'mine': ")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="needed is missing; allowed: true or false"):
        validate(Config, {}, "run")


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1.0, "a": [1]}) == canonical_json({"a": [1], "b": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


class Outer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: Config
    named: dict[str, Config] = {}


@pytest.mark.parametrize("place", ["inner", "named.one"])
def test_a_typo_is_named_however_deep_it_stands(place: str) -> None:
    wrong = {"needed": True, "latent": 3}
    values: dict[str, Any] = {"inner": {"needed": True}}
    values |= {"inner": wrong} if place == "inner" else {"named": {"one": wrong}}
    with pytest.raises(UserError) as caught:
        validate(Outer, values, "target 'mine.yaml'")
    line = f"target 'mine.yaml': unknown key '{place}.latent'; did you mean '{place}.latents'?"
    assert str(caught.value).startswith(line)
    assert "needed" in str(caught.value)
