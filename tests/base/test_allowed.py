"""What a setting may be is said in words, for every setting of every plugin."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from saebench_recovery.base.allowed import allowed_values, default_of
from saebench_recovery.base.catalogue import BUILT_IN, Kind
from saebench_recovery.registry import plugin_class


class Inner(BaseModel):
    depth: int = 1


class Config(BaseModel):
    count: int = Field(default=3, ge=1, le=10)
    share: float = Field(default=0.5, gt=0, lt=1)
    least: float = Field(ge=2)
    way: Literal["up", "down"] = "up"
    names: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    on: bool = False
    inner: Inner = Inner()


def test_types_and_bounds_are_words() -> None:
    assert allowed_values(Config) == {
        "count": "a whole number from 1 to 10",
        "share": "a number above 0 and below 1",
        "least": "a number at least 2",
        "way": "one of up, down",
        "names": "a list (each a whole number at least 0) or null",
        "on": "true or false",
        "inner": "a mapping",
    }


def test_a_default_is_spelled_as_it_would_be_given() -> None:
    found = {name: default_of(Config, name) for name in ("count", "least", "way", "names", "on")}
    assert found == {"count": "3", "least": None, "way": "up", "names": "null", "on": "false"}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in BUILT_IN for name in BUILT_IN[kind]]
)
def test_every_setting_says_what_it_may_be_and_what_it_means(kind: Kind, name: str) -> None:
    config = plugin_class(kind, name).Config
    allowed = allowed_values(config)
    assert "any value" not in allowed.values()
    assert list(allowed) == list(config.model_fields)
    assert [key for key, field in config.model_fields.items() if not field.description] == []
