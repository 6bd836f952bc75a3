"""What a plugin can be told; of those built in read from a file, which costs no import of torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from saebench_recovery.base.allowed import allowed_values, default_of
from saebench_recovery.base.catalogue import Kind
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import Plugin
from saebench_recovery.base.settings import unknown_key

# `python -m docs.settings` writes it from the classes, and a test holds it to them.
BUILT_IN_SETTINGS = Path(__file__).with_name("settings.json")


def described(plugin: type[Plugin]) -> dict[str, Any]:
    """A plugin's documentation, and for each setting what it means, may be and is by default."""
    return {
        "name": plugin.name,
        "kind": plugin.kind,
        "about": inspect.getdoc(plugin) or "",
        "settings": {
            key: {
                "meaning": plugin.Config.model_fields[key].description,
                "allowed": allowed,
                "default": default_of(plugin.Config, key),
            }
            for key, allowed in allowed_values(plugin.Config).items()
        },
    }


@cache
def built_in(kind: Kind, name: str) -> dict[str, Any]:
    """The same for a plugin of this package."""
    found: dict[str, Any] = json.loads(BUILT_IN_SETTINGS.read_text("utf-8"))[kind][name]
    return found


def check_keys(kind: Kind, name: str, keys: Iterable[str]) -> None:
    """Make sure that a plugin of this package has settings of these names, before it is imported.

    Raises:
        UserError: it has not.
    """
    known = built_in(kind, name)["settings"]
    if wrong := [unknown_key(key, known) for key in keys if key not in known]:
        raise UserError(f"{kind} {name!r}: {'; '.join(wrong)}")
