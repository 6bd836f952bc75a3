"""Writes saebench_recovery/base/settings.json: what the built-in plugins can be told.

`python -m docs.settings` reads it off the classes, so that the command line need not import them.
"""

from __future__ import annotations

import json
from typing import get_args

from saebench_recovery import registry
from saebench_recovery.base.catalogue import BUILT_IN, Kind
from saebench_recovery.base.described import BUILT_IN_SETTINGS, described


def settings() -> str:
    every = {
        kind: {name: described(registry.plugin_class(kind, name)) for name in BUILT_IN[kind]}
        for kind in get_args(Kind)
    }
    return json.dumps(every, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    BUILT_IN_SETTINGS.write_text(settings(), "utf-8")
