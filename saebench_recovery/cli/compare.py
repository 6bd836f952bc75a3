"""`saebench compare`: runs side by side on the flips that all of them attacked."""

from __future__ import annotations

from typing import Annotated

import typer

from saebench_recovery.base.errors import UserError
from saebench_recovery.cli.options import Json


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN [NAME=]RUN...",
            help="Folders of two or more runs, and what they are to be called.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Run that the others are compared with, by name or identity; default: the first.",
            envvar="SAEBENCH_BASELINE",
        ),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="flops",
            help="Read recovery where every search had spent the same on each flip.",
            envvar="SAEBENCH_MATCH",
        ),
    ] = None,
    *,
    json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown.", envvar="SAEBENCH_MARKDOWN")
    ] = False,
) -> None:
    """Set runs side by side on the flips that all of them attacked.

    The first run is what the others are compared with, in paired differences and a test that
    respects source items (on single flips, McNemar's exact one). A line in words sums each of them
    up, and one is printed for everything in which the runs were not on equal footing.

    \b
    Examples:
      saebench compare runs/0123456789abcdef runs/fedcba9876543210 --match flops
      saebench compare a=runs/0123456789abcdef b=runs/fedcba9876543210 --baseline b --markdown
    """
    from saebench_recovery.results import compare as comparison
    from saebench_recovery.results.report.comparison_markdown import comparison_page
    from saebench_recovery.results.report.comparison_table import print_comparisons

    if match not in (None, "flops"):
        raise UserError(f"--match {match!r}: only flops can be matched")
    if json and markdown:
        raise UserError("give --json or --markdown, not both")
    found = comparison.compare(runs, baseline=baseline, match_flops=match is not None)
    if json:
        print(comparison.as_json(found))
    elif markdown:
        print(comparison_page(found))
    else:
        print_comparisons(found)
