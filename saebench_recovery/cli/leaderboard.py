"""`saebench leaderboard`: rankings from complete runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Folders of complete runs.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write to.", envvar="SAEBENCH_LEADERBOARDS")
    ] = Path("leaderboards"),
) -> None:
    """Rank defenses and attacks from complete runs.

    Writes one JSON file per target and task, and a page per target.

    \b
    Example:
      saebench leaderboard runs/* --out leaderboards/
    """
    from saebench_recovery.results.leaderboard import build
    from saebench_recovery.results.publish import publish

    for path in publish(build(runs), out):
        print(path)
