"""`saebench verify`: whether stored runs hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saebench_recovery.cli.interrupt import stoppable

if TYPE_CHECKING:
    from saebench_recovery.runs.verify.report import Verification


def verify(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|FOLDER...", help="Runs, or folders that hold runs."),
    ],
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Replay N flips of each task; default: all.",
            envvar="SAEBENCH_SAMPLE",
        ),
    ] = None,
    sample_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Of the drawing; default: one that nobody can know before.",
            envvar="SAEBENCH_SAMPLE_SEED",
        ),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.py",
            help="File with a plugin that the runs name, repeatable.",
            envvar="SAEBENCH_PLUGIN",
        ),
    ] = None,
) -> None:
    """Recompute stored runs from their spec and evidence with the reference engine.

    Identity, hashes, facts, records and rows: every mismatch is a line with task, example, field,
    what is stored and what was found. Exit code 0: all holds; 1: something does not; 2: what could
    be checked holds, and not all could be.

    \b
    Examples:
      saebench verify runs/0123456789abcdef
      saebench verify runs --sample 4
    """
    from saebench_recovery.cli.progress import progress_bar
    from saebench_recovery.registry import load_plugin_file
    from saebench_recovery.runs.verify.verify import runs_in
    from saebench_recovery.runs.verify.verify import verify as verify_run

    for file in plugin or ():
        load_plugin_file(file)
    codes = []
    for path in [run for place in runs for run in runs_in(place)]:
        with stoppable(), progress_bar(wanted=True) as progress:
            found = verify_run(path, sample, seed=sample_seed, progress=progress)
        for line in _lines(path, found):
            # Names and ids are the file's own words: none of them may move the cursor.
            print("".join(c if c.isprintable() else "?" for c in line))
        codes.append(found.exit_code)
    raise typer.Exit(1 if 1 in codes else max(codes))


def _lines(path: Path, found: Verification) -> Iterator[str]:
    for mismatch in found.mismatches:
        yield f"does not hold: {mismatch.line}"
    for part in found.unchecked:
        yield f"could not be checked: {part.line}"
    verdict = ("holds", "does not hold", "holds as far as it could be checked")[found.exit_code]
    drawn = "" if found.seed is None else f", drawn with --sample-seed {found.seed}"
    yield f"{path}: {verdict}; {found.flips} of {found.stored_flips} flips replayed{drawn}"
