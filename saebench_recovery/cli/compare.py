"""`saebench compare`: runs side by side on the flips that all of them attacked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of two or more runs.")
    ],
    match: Annotated[
        str | None,
        typer.Option(
            metavar="flops",
            help="Read recovery where every search had spent the same on each flip.",
            envvar="SAEBENCH_MATCH",
        ),
    ] = None,
) -> None:
    """Set runs side by side on the flips that all of them attacked.

    The first run is what the others are compared with, in paired differences and a test that
    respects source items (on single flips, McNemar's exact one). A line is printed for everything
    in which the runs were not on equal footing.

    \b
    Example:
      saebench compare runs/0123456789abcdef runs/fedcba9876543210 --match flops
    """
    from saebench_recovery.base.errors import UserError
    from saebench_recovery.results import compare as comparison
    from saebench_recovery.results.report.comparison_table import print_comparisons

    if match not in (None, "flops"):
        raise UserError(f"--match {match!r}: only flops can be matched")
    print_comparisons(comparison.compare(runs, match_flops=match is not None))
