"""`saebench sweep`: every run of a grid file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from saebench_recovery.base.settings import validate
from saebench_recovery.cli.dry_run import list_cells
from saebench_recovery.cli.on_cluster import cluster_of, destination_of
from saebench_recovery.cli.options import (
    Force,
    Jobs,
    KeepText,
    Plugins,
    fields_of,
    with_lists,
    with_spec_options,
)
from saebench_recovery.cli.sweeping import Sending, carry_out, prepare, report
from saebench_recovery.spec import RunSpec

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
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray", help="This machine, or a Ray cluster.", envvar="SAEBENCH_ENGINE"
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="A Ray cluster that runs already; default: a new one here.",
            envvar="SAEBENCH_ADDRESS",
        ),
    ] = None,
    gpu_share: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            max=1,
            help="Of a GPU, for each worker of a cluster; default: all of one, if there are any.",
            envvar="SAEBENCH_GPU_SHARE",
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|ADDRESS",
            help="Folder for results; from a cluster also an address, such as s3://bucket/runs.",
            envvar="SAEBENCH_OUT",
        ),
    ] = "runs",
    force: Force = False,
    keep_text: KeepText = False,
    **options: Any,
) -> None:
    """Run every cell of a grid: of targets, tasks, defenses, attacks, settings, budgets, seeds.

    Each cell is a run like any other, in OUT/<identity>: what is complete is not run again, and
    what was interrupted goes on. A cell that fails is tried once more and listed at the end; exit
    code 2 if any did. Options go before what the file says.

    By default a process works on each accelerator, or on each core; on a Ray cluster, an actor.

    \b
    Examples:
      saebench sweep leaderboards/organism.yaml --dry-run
      saebench sweep leaderboards/organism.yaml --out runs --jobs 2
      saebench sweep grid.yaml --shard $SLURM_ARRAY_TASK_ID/16
      saebench sweep grid.yaml --engine ray --address auto --out s3://bucket/runs
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
    cluster = cluster_of(engine, address, gpu_share)
    destination = destination_of(out, cluster)
    if dry_run:
        list_cells(plans, destination.states(plans))
        return
    orders = Orders(Path(out), force=force, keep_text=keep_text)
    sending = Sending(orders, destination, jobs, plugins, named, cluster)
    code = report(plans, carry_out(plans, sending, quiet=False))
    if code == 0:
        print(f"{len(plans)} cells are complete, in {out!r}")
    raise typer.Exit(code)
