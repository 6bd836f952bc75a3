"""`saebench publish`: the rows of a run with all that others need to check them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench_recovery.base.printable import printable
from saebench_recovery.cli.options import place


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a complete run.")],
    out: Annotated[
        Path, typer.Option("--out", parser=place, metavar="DIR", help="Folder to write to.")
    ],
) -> None:
    """Write an entry for each row of a run, with its evidence, for others to check.

    DIR/entries/ holds a JSON file for each row with the SHA-256 of all that it rests on, and
    DIR/evidence/ the run: facts, records and perturbations, without texts. A run in which a path
    of this machine stands is refused.

    \b
    Example:
      saebench publish runs/0123456789abcdef --out my-entries
      saebench verify my-entries
    """
    from saebench_recovery.results.published import publish as write

    for path in write(run, out):
        print(printable(str(path)))
