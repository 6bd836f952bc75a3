"""`saebench list`: what can be named on the command line."""

from __future__ import annotations

from typing import Annotated, get_args

import typer


def list_plugins(
    what: Annotated[str, typer.Argument(metavar="defenses|attacks|tasks|targets")],
) -> None:
    """List the known defenses, attacks, tasks or targets.

    \b
    Examples:
      saebench list defenses
      saebench list targets
    """
    from saebench_recovery import registry
    from saebench_recovery.base.catalogue import Kind
    from saebench_recovery.base.errors import UserError
    from saebench_recovery.base.settings import nearest

    kinds: dict[str, Kind] = {f"{kind}s": kind for kind in get_args(Kind)}
    if what in kinds:
        _print(what, registry.listing(kinds[what]))
    elif what == "targets":
        _print(what, _targets())
    else:
        known = nearest(what, [*kinds, "targets"])
        raise UserError(f"nothing called {what!r} to list; {known}")


def _targets() -> dict[str, str]:
    from saebench_recovery.targets.presets import presets

    return {
        name: f"{preset.description}; tasks: {', '.join(preset.tasks) or 'any'}"
        for name, preset in sorted(presets().items())
    }


def _print(what: str, descriptions: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(what, "", box=None, header_style="bold", pad_edge=False)
    for name, description in descriptions.items():
        table.add_row(name, description)
    Console().print(table)
