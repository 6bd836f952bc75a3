"""`saebench list`: what can be named on the command line, and what each can be told."""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

import typer

from saebench_recovery.base.catalogue import Kind
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.printable import printable
from saebench_recovery.base.settings import nearest
from saebench_recovery.cli.options import Json, Plugins

KINDS: dict[str, Kind] = {f"{kind}s": kind for kind in get_args(Kind)}
LETTERS: dict[Kind, str] = {"defense": "-D", "attack": "-A", "task": "-T"}


def list_plugins(
    what: Annotated[str, typer.Argument(metavar="defenses|attacks|tasks|targets")],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, with its settings.")
    ] = None,
    *,
    as_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """List the known defenses, attacks, tasks or targets, or the settings of one.

    \b
    Examples:
      saebench list defenses
      saebench list defenses clamp
    """
    from saebench_recovery import registry

    if what not in KINDS and what != "targets":
        raise UserError(f"nothing called {what!r} to list; {nearest(what, [*KINDS, 'targets'])}")
    for path in plugin or ():
        registry.load_plugin_file(path)
    if name is not None and what in KINDS:
        described = registry.description(KINDS[what], name)
        print(json.dumps(described, indent=2)) if as_json else _print_one(KINDS[what], described)
        return
    lines = registry.listing(KINDS[what]) if what in KINDS else _targets()
    if name is not None:
        if name not in lines:
            raise UserError(f"unknown target {name!r}; {nearest(name, lines)}")
        lines = {name: lines[name]}
    print(json.dumps(lines, indent=2)) if as_json else _print_all(what, lines)


def _targets() -> dict[str, str]:
    from saebench_recovery.targets.presets import presets

    return {
        name: f"{preset.description}; tasks: {', '.join(preset.tasks) or 'any'}"
        for name, preset in sorted(presets().items())
    }


def _print_one(kind: Kind, described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from saebench_recovery.results.report.escape import terminal

    console = Console()
    console.print(terminal(f"{kind} {described['name']}"), style="bold")
    for line in described["about"].splitlines():
        print(printable(line))  # wrapped as it was written
    table = Table("setting", "default", "allowed", "meaning", box=None, header_style="bold")
    for key, setting in described["settings"].items():
        default = setting["default"] if setting["default"] is not None else "(none: to be given)"
        cells = (f"{LETTERS[kind]} {key}", default, setting["allowed"], setting["meaning"] or "")
        table.add_row(*map(terminal, cells))
    console.print()
    console.print(table if described["settings"] else "It has no settings.")


def _print_all(what: str, descriptions: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from saebench_recovery.results.report.escape import terminal

    table = Table(what, "", box=None, header_style="bold", pad_edge=False)
    for name, description in descriptions.items():
        table.add_row(terminal(name), terminal(description))
    Console().print(table)
