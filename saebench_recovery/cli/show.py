"""`saebench show`: the table of a stored run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder or its result.json.")],
) -> None:
    """Show the table of a stored run.

    \b
    Example:
      saebench show runs/0123456789abcdef
    """
    from saebench_recovery.results.consistency import read_consistent
    from saebench_recovery.results.report.table import print_result

    print_result(read_consistent(run))
