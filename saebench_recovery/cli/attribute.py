"""`saebench attribute`: through which part of its deltas a run's recoveries go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.options import Json, Plugins


def attribute(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with its evidence.")],
    *,
    flips: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="The first N recovered flips of each task.",
            envvar="SAEBENCH_FLIPS",
        ),
    ] = 32,
    top: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="K",
            help="Of the other latents, replay the K that move most by themselves too.",
            envvar="SAEBENCH_TOP",
        ),
    ] = 8,
    json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Split recovering deltas into clamped latents, other latents, SAE residual; replay each.

    Each part alone, knocked out, and at one norm, with the defense active; beside it the parts of
    random deltas and of those to a wrong answer, and random directions in the same subspace.

    \b
    Example:
      saebench attribute runs/0123456789abcdef
    """
    from saebench_recovery.cli.progress import progress_bar
    from saebench_recovery.results.report.attribution_table import print_attribution
    from saebench_recovery.runs.attribute.attribute import attribute as attribute_run

    with stoppable(), progress_bar(wanted=not json) as progress:
        found = attribute_run(run, flips=flips, top=top, plugins=plugin or (), progress=progress)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        print_attribution(found)
