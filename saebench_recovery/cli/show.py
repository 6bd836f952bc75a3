"""`saebench show`: the tables of stored runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench_recovery.cli.options import Json


def show(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs' folders or their result.json.")
    ],
    *,
    full: Annotated[bool, typer.Option("--full", help="All figures.")] = False,
    json: Json = False,
) -> None:
    """Show the tables of stored runs.

    \b
    Examples:
      saebench show runs/0123456789abcdef
      saebench show runs/* --full
    """
    from saebench_recovery.results.consistency import read_consistent
    from saebench_recovery.results.report.table import print_result

    for result, _ in [read_consistent(run) for run in runs]:
        print(result.model_dump_json()) if json else print_result(result, full=full)
