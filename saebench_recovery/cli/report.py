"""`saebench report`: leaderboards or runs as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench_recovery.base.printable import printable
from saebench_recovery.cli.options import place


def report(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUNS...|LEADERBOARDS]",
            help="Folders of complete runs, or of leaderboards; default: leaderboards.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            parser=place,
            metavar="FILE.html",
            help="Page.",
            envvar="SAEBENCH_REPORT_OUT",
        ),
    ] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="DIR",
            help="Write the plots there too, as SVG and PNG.",
            envvar="SAEBENCH_FIGURES",
        ),
    ] = None,
) -> None:
    """Write one page that shows leaderboards, or runs ranked as on one; it needs no network.

    It holds the board with its filters, plots of recovery, flags with their remedies, and each
    row's provenance and command. An attribution is shown where
    `saebench attribute RUN --json > RUN/attribution.json` has put it beside a run.

    Needs `pip install 'saebench-recovery[report]'`.

    \b
    Examples:
      saebench report leaderboards --out boards.html
      saebench report runs/* --out report.html --figures figures
    """
    from saebench_recovery.results.report.html.write import write_report

    for path in write_report(places or [Path("leaderboards")], out, figures):
        print(printable(str(path)))
