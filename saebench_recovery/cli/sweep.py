"""`saebench sweep`: every run of a grid file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saebench_recovery.base.printable import printable
from saebench_recovery.base.settings import validate
from saebench_recovery.cli.options import (
    Force,
    Jobs,
    KeepText,
    Out,
    Plugins,
    fields_of,
    with_lists,
    with_spec_options,
)
from saebench_recovery.cli.sweeping import Sending, carry_out, prepare, report
from saebench_recovery.spec import RunSpec

if TYPE_CHECKING:
    from saebench_recovery.runs.plan import Plan

OF_CODE = ("target", "task_config")  # fields that may name code


@with_spec_options
def sweep(
    context: typer.Context,
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="See docs/sweeps.md.")],
    *,
    plugin: Plugins = None,
    jobs: Jobs = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only the I-th of N shares, for one of N machines.",
            envvar="SAEBENCH_SHARD",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the cells, and run none.", envvar="SAEBENCH_DRY_RUN"),
    ] = False,
    out: Out = Path("runs"),
    force: Force = False,
    keep_text: KeepText = False,
    **options: Any,
) -> None:
    """Run every cell of a grid: of targets, tasks, defenses, attacks, settings, budgets, seeds.

    Each cell is a run like any other, in OUT/<identity>: what is complete is not run again, and
    what was interrupted goes on. A cell that fails is tried once more and listed at the end; exit
    code 2 if any did. Options go before what the file says.

    By default a process works on each accelerator, or on each core.

    \b
    Examples:
      saebench sweep leaderboards/organism.yaml --dry-run
      saebench sweep leaderboards/organism.yaml --out runs --jobs 2
      saebench sweep grid.yaml --shard $SLURM_ARRAY_TASK_ID/16
    """
    from saebench_recovery.runs.sweep.cells import planned
    from saebench_recovery.runs.sweep.cells import shard as share
    from saebench_recovery.runs.sweep.engine import Orders
    from saebench_recovery.runs.sweep.grid import read_grid

    plugins = plugin or ()
    given = fields_of(context, options, "", ())
    named = validate(RunSpec, {k: v for k, v in given.items() if k in OF_CODE}, "sweep")
    prepare(plugins, named)
    plans = planned(read_grid(grid, with_lists(given)))
    if shard is not None:
        plans = share(plans, shard)
    if dry_run:
        _list(plans, out)
        return
    sending = Sending(Orders(out, force=force, keep_text=keep_text), jobs, plugins, named)
    code = report(plans, carry_out(plans, sending, quiet=False))
    if code == 0:
        print(f"{len(plans)} cells are complete, in {str(out)!r}")
    raise typer.Exit(code)


def _list(plans: Sequence[Plan], out: Path) -> None:
    """Print each cell with how far it has come; a letter tells which share their passes."""
    from saebench_recovery.runs.sweep.cells import grouped, shared_part, state, title

    groups = grouped(plans, 1)
    width = len(str(len(groups)))
    states: dict[str, int] = {}
    for number, group in enumerate(groups, 1):
        for plan in group:
            found = state(plan, out)
            states[found] = states.get(found, 0) + 1
            line = f"{plan.identity}  {found:5}  {number:{width}}  {title(plan)}"
            print(printable(line))
    each = ", ".join(f"{count} {name}" for name, count in sorted(states.items()))
    fits = len({shared_part(plan) for plan in plans})
    print(
        f"{len(plans)} cells: {each}. The number before a name is that of the fit, with its clean "
        f"and defended passes, that cells share: {fits} in all."
    )
