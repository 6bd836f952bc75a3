"""`saebench verify`: whether stored runs hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.printable import printable
from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.options import Jobs, Plugins

Sample = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Replay N flips of each task; default: all.",
        envvar="SAEBENCH_SAMPLE",
    ),
]
SampleSeed = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Of the drawing; default: one that nobody can know before.",
        envvar="SAEBENCH_SAMPLE_SEED",
    ),
]


def verify(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|ENTRY|FOLDER...",
            help="Runs, published entries, or folders that hold some.",
        ),
    ],
    sample: Sample = None,
    sample_seed: SampleSeed = None,
    plugin: Plugins = None,
    jobs: Jobs = None,
) -> None:
    """Recompute stored runs, or rows of them, from spec and evidence with the reference engine.

    Identity, hashes, facts, records and rows: every mismatch is a line with task, example, field,
    what is stored and what was found. Up to 16 flips of each task are attacked once more, as a
    search that found nothing leaves no evidence. Exit code 0: all holds; 1: something does not;
    2: what could be checked holds, and not all could be.

    \b
    Examples:
      saebench verify runs/0123456789abcdef
      saebench verify runs --sample 4
    """
    from saebench_recovery.runs.verify.verify import runs_in

    paths = [run for place in runs for run in runs_in(place)]
    codes = [
        code for _, code in verified(paths, sample, sample_seed, plugins=plugin or (), jobs=jobs)
    ]
    raise typer.Exit(1 if 1 in codes else max(codes))


def verified(
    paths: Sequence[Path],
    sample: int | None = None,
    seed: int | None = None,
    *,
    plugins: Sequence[Path] = (),
    jobs: int | None = None,
    replayed: Collection[Path] | None = None,
) -> Iterator[tuple[Path, int]]:
    """Verify one after the other and print what is found; each with its exit code.

    What is not among those `replayed` is held to its hashes and records alone; None: all are.
    """
    from saebench_recovery.cli.progress import progress_bar
    from saebench_recovery.runs.verify.verify import hold_together
    from saebench_recovery.runs.verify.verify import verify as verify_run

    for path in paths:
        try:
            with stoppable(), progress_bar(wanted=True) as progress:
                if replayed is None or path in replayed:
                    found = verify_run(
                        path, sample, seed=seed, plugins=plugins, jobs=jobs, progress=progress
                    )
                else:
                    found = hold_together(path)
        except UserError as error:
            if len(paths) == 1:
                raise
            print(printable(f"could not be checked: {error}"))
            yield path, 2
            continue
        for line in (*found.lines(), f"{path}: {found.verdict}"):
            # Names and ids are the file's own words: none of them may move the cursor.
            print(printable(line))
        yield path, found.exit_code
