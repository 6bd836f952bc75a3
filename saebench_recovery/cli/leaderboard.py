"""`saebench leaderboard`: rankings from complete runs, and the entries that they rest on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.printable import printable
from saebench_recovery.base.reading import is_folder
from saebench_recovery.cli.options import Plugins, place
from saebench_recovery.cli.verify import Sample, SampleSeed, verified

FOLDER = "leaderboards"
VARIABLE = "SAEBENCH_LEADERBOARDS"


class RunsFirst(TyperGroup):
    """A group that takes words which are none of its commands for those of `rank`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["rank", *args]
        return super().parse_args(ctx, args)


leaderboard = typer.Typer(
    cls=RunsFirst,
    help="Rank defenses and attacks from complete runs (RUNS...), or keep published entries.",
    rich_markup_mode=None,
)
Out = Annotated[
    Path,
    typer.Option(
        "--out", parser=place, metavar="PATH", help="Folder to write to.", envvar=VARIABLE
    ),
]


@leaderboard.command()
def rank(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Folders of complete runs.")
    ],
    out: Out = Path(FOLDER),
    *,
    parquet: Annotated[
        bool,
        typer.Option(
            "--parquet", help="Write Parquet beside each CSV file.", envvar="SAEBENCH_PARQUET"
        ),
    ] = False,
) -> None:
    """Rank defenses and attacks from complete runs; `rank` may be left out.

    Writes one JSON and one CSV file per target and task, and a page per target.

    \b
    Examples:
      saebench leaderboard runs/* --out leaderboards/
      saebench leaderboard leaderboards/evidence/*
    """
    from saebench_recovery.base.uncollected import uncollected
    from saebench_recovery.results.leaderboard import build
    from saebench_recovery.results.pages import write_boards

    with uncollected():
        written = write_boards(build(runs), out, parquet=parquet)
    for path in written:
        print(printable(str(path)))


@leaderboard.command()
def add(
    entries: Annotated[
        list[Path],
        typer.Argument(metavar="ENTRY...", help="Published entries, or folders that hold them."),
    ],
    out: Out = Path(FOLDER),
    sample: Sample = None,
    plugin: Plugins = None,
) -> None:
    """Verify published entries, and take over those that hold, with their evidence.

    Exit code 0: all hold and are there now; 1: one does not hold; 2: one could not be checked.

    \b
    Example:
      saebench leaderboard add my-entries
    """
    from saebench_recovery.results.published import copy_entry, is_entry
    from saebench_recovery.runs.verify.verify import runs_in

    files = [file for place in entries for file in runs_in(place)]
    for file in files:
        if not is_entry(file):
            raise UserError(f"{str(file)!r} is a run, no entry; `saebench publish` makes entries")
    worst = 0
    for file, code in verified(files, sample, plugins=plugin or ()):
        if code == 0:
            print(printable(str(copy_entry(file, out))))
        worst = 1 if 1 in (worst, code) else max(worst, code)
    raise typer.Exit(worst)


@leaderboard.command()
def check(
    folder: Annotated[
        Path,
        typer.Argument(metavar="[FOLDER]", help="Of a leaderboard.", envvar=VARIABLE),
    ] = Path(FOLDER),
    sample: Sample = None,
    entries: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Replay flips of N entries, and hold the others to their hashes and records "
            "alone; default: of all.",
            envvar="SAEBENCH_ENTRIES",
        ),
    ] = None,
    sample_seed: SampleSeed = None,
    plugin: Plugins = None,
) -> None:
    """Verify every entry of a leaderboard, and that nothing else lies there.

    Exit code 0: all hold; 1: one does not; 2: one could not be checked.

    \b
    Examples:
      saebench leaderboard check --sample 4
      saebench leaderboard check leaderboards --entries 8 --sample 2
    """
    import random
    import secrets

    from saebench_recovery.results.published import entries_in, strays

    if not is_folder(folder):
        raise UserError(f"no folder {str(folder)!r}")
    files, left_over = entries_in(folder), list(strays(folder))
    for name in left_over:
        print(printable(f"does not hold: {name} belongs to no entry"))
    if not files:
        print(printable(f"{folder}: no entries"))
    drawn = files
    if entries is not None and entries < len(files):
        sample_seed = secrets.randbelow(2**32) if sample_seed is None else sample_seed
        drawn = random.Random(sample_seed).sample(files, entries)
        print(f"{entries} of {len(files)} entries are replayed, with --sample-seed {sample_seed}")
    found = verified(files, sample, sample_seed, plugins=plugin or (), replayed=drawn)
    codes = [code for _, code in found]
    raise typer.Exit(1 if left_over or 1 in codes else max(codes, default=0))
