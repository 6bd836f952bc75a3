"""Plugins are found by name wherever they come from, and bad ones are refused in one line."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import Tensor

from saebench_recovery import interfaces, registry
from saebench_recovery.base.catalogue import BUILT_IN, Kind
from saebench_recovery.base.described import BUILT_IN_SETTINGS, described
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.registry import (
    create,
    load_plugin_file,
    plugin_class,
    plugin_file,
    register_attack,
    register_defense,
)

MINE = """
from saebench_recovery import register_defense
from saebench_recovery.interfaces import Defense

@register_defense("mine")
class Mine(Defense):
    def intervene(self, site, resid_BTD):
        return resid_BTD * FACTOR
"""


@pytest.fixture(autouse=True)
def _forget_mine() -> Iterator[None]:
    yield
    for known in registry._registered.values():
        known.pop("mine", None)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in get_args(Kind) for name in BUILT_IN[kind]]
)
def test_every_built_in_is_what_it_says(kind: Kind, name: str) -> None:
    cls = plugin_class(kind, name)
    assert cls.name == name
    assert issubclass(cls, getattr(interfaces, kind.capitalize()))
    assert create(kind, name, {}).config == cls.Config()
    with pytest.raises(UserError, match=f"{kind} '{name}': unknown key 'no_such_key'"):
        create(kind, name, {"no_such_key": 1})


def test_listing_and_checking_import_no_torch() -> None:
    code = (
        "import sys; from saebench_recovery import registry\n"
        "for kind in ('defense', 'attack', 'task'): registry.listing(kind)\n"
        "registry.check_name('defense', 'clamp'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_name_names_the_nearest_and_all() -> None:
    with pytest.raises(UserError) as caught:
        create("defense", "ablatoin", {})
    assert str(caught.value) == (
        "unknown defense 'ablatoin'; did you mean 'ablation'? known: "
        + ", ".join(registry.listing("defense"))
    )


def test_plugin_file_registers_and_reloads(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE.replace("FACTOR", "0"))
    load_plugin_file(file)
    first = create("defense", "mine", {"latents": 3})
    assert plugin_file(type(first)) == file
    assert plugin_file(type(create("defense", "clamp", {}))) is None
    assert "mine" in registry.listing("defense")

    file.write_text(MINE.replace("FACTOR", "2"))
    load_plugin_file(file)  # edited and loaded again, as in a notebook
    second = create("defense", "mine", {"latents": 3})
    assert type(second) is not type(first)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def broken(:", "SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        (MINE.replace("intervene", "intrvene"), "does not implement intervene"),
        (MINE.replace('"mine"', '"clamp"'), "name 'clamp' is taken by saebench_recovery.defenses"),
        (MINE.replace("(Defense)", ""), "is not a subclass of Defense"),
    ],
)
def test_plugin_file_that_does_not_import(tmp_path: Path, source: str, reason: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(UserError) as caught:
        load_plugin_file(file)
    assert str(caught.value).startswith(f"plugin file {str(file)!r} does not import: ")
    assert reason in str(caught.value)


def test_plugin_file_must_exist_and_be_python(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_plugin_file(tmp_path / "none.py")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not a Python file"):
        load_plugin_file(tmp_path / "mine.txt")


class Copy(interfaces.Defense):
    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD


def test_two_classes_cannot_share_a_name() -> None:
    class Other(Copy):
        pass

    register_defense("mine")(Copy)
    register_defense("mine")(Copy)
    with pytest.raises(UserError, match="name 'mine' is taken"):
        register_defense("mine")(Other)


def test_kinds_have_their_own_names() -> None:
    register_defense("mine")(Copy)
    with pytest.raises(UserError, match="unknown attack 'mine'"):
        create("attack", "mine", {})
    with pytest.raises(UserError, match="not a subclass of Attack"):
        register_attack("mine")(Copy)  # type: ignore[type-var]


def test_entry_points_are_listed_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(group: str) -> Any:
        points = {
            "saebench_recovery.defenses": [
                ("mine", "tests.test_registry:Copy"),
                ("gone", "no_such_module:Copy"),
            ]
        }
        return importlib.metadata.EntryPoints(
            importlib.metadata.EntryPoint(name, value, group)
            for name, value in points.get(group, [])
        )

    monkeypatch.setattr(importlib.metadata, "entry_points", installed)
    assert {"clamp", "gone", "mine"} <= set(registry.listing("defense"))
    assert isinstance(create("defense", "mine", {}), Copy)
    with pytest.raises(UserError, match="'gone' at no_such_module:Copy does not import"):
        create("defense", "gone", {})


def test_the_file_of_built_in_settings_is_up_to_date() -> None:
    """Where it is not: `python -m docs.settings`."""
    for kind, of_kind in json.loads(BUILT_IN_SETTINGS.read_text("utf-8")).items():
        assert of_kind == {name: described(plugin_class(kind, name)) for name in BUILT_IN[kind]}
