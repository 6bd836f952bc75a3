"""`saebench run`: attack a defense and score what comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.printable import printable
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.options import (
    Force,
    Jobs,
    KeepText,
    Model,
    Out,
    Plugins,
    Saes,
    TaskFiles,
    fields_of,
    is_given,
    with_lists,
    with_spec_options,
    with_tasks_of,
)
from saebench_recovery.cli.sweeping import Sending, carry_out, prepare, report
from saebench_recovery.spec import RunSpec

if TYPE_CHECKING:
    from saebench_recovery.schema import RunResult


@with_spec_options
def run(
    context: typer.Context,
    *,
    model: Model = "",
    sae: Saes = None,
    plugin: Plugins = None,
    task_file: TaskFiles = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=10_000,
            help="Run with each seed from 0 to N - 1, and show how far apart the figures lie.",
            envvar="SAEBENCH_SEEDS",
        ),
    ] = None,
    jobs: Jobs = None,
    out: Out = Path("runs"),
    json: Annotated[
        bool,
        typer.Option("--json", help="Print only the path of result.json.", envvar="SAEBENCH_JSON"),
    ] = False,
    force: Force = False,
    keep_text: KeepText = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Verify the result in a process of its own; its exit code is the run's.",
            envvar="SAEBENCH_VERIFY",
        ),
    ] = False,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Write a page of the results, see `saebench report`.",
            envvar="SAEBENCH_REPORT",
        ),
    ] = None,
    **options: Any,
) -> None:
    """Attack a defense and score what comes back.

    The result stands in OUT/<identity>/result.json. A complete run that is repeated is read
    from there; an interrupted one goes on where it was stopped. Several
    values of --defense, --attack, --threat-model, --budget or --seed, with commas between them,
    are runs of their own, one for each combination.

    \b
    Examples:
      saebench run --defense clamp --attack orthogonal
      saebench run --defense ablation --attack orthogonal --threat-model post
      saebench run --defense clamp -D latents=16 -D value=0 --budget 0.5
      saebench run --defense clamp --task ioi --seeds 3
      saebench run --defense clamp,steering --attack orthogonal,gcg --jobs 2
      saebench run --plugin my_defense.py --defense my-clamp --limit 32
      saebench run --protocol published --task ioi --target gpt2-small
      saebench run --task ioi --model gpt2 --sae gpt2-small-res-jb/blocks.4.hook_resid_pre
    """
    from saebench_recovery.results.store import RESULT
    from saebench_recovery.runs.sweep.destination import Folder
    from saebench_recovery.runs.sweep.engine import Orders
    from saebench_recovery.runs.sweep.grid import specs_of

    plugins = [*(plugin or ()), *(task_file or ())]
    fields = with_lists(fields_of(context, options, model, sae or ()))
    fields = with_tasks_of(task_file or (), fields)
    if seeds is not None:
        if is_given(context, "seed"):
            raise UserError("give --seed or --seeds, not both")
        fields["seed"] = list(range(seeds))
    specs = specs_of(fields)
    if report_file is not None:
        from saebench_recovery.results.report.html.write import check_report

        check_report(report_file)
    prepare(plugins, specs[0])
    orders = Orders(out, force=force, keep_text=keep_text)
    sending = Sending(orders, Folder(out), jobs, plugins, specs[0])
    if len(specs) == 1:
        results, code = [_alone(specs[0], sending, quiet=json)], 0
    else:
        results, code = _together(specs, sending, quiet=json)
    paths = [out / result.identity / RESULT for result in results]
    for path in paths:
        print(printable(str(path)))
    if report_file is not None and paths:
        from saebench_recovery.results.report.html.write import write_report

        write_report([path.parent for path in paths], report_file)
        print(printable(str(report_file)))
    if verify:
        code = max([code, *(_verified(path, plugins, quiet=json) for path in paths)])
    raise typer.Exit(code)


def _alone(spec: RunSpec, sending: Sending, *, quiet: bool) -> RunResult:
    from saebench_recovery.cli.progress import progress_bar
    from saebench_recovery.results.report.table import print_result
    from saebench_recovery.runs.run import execute
    from saebench_recovery.runs.sharing import Sharing

    orders, sharing = sending.orders, Sharing(sending.jobs, sending.plugins)
    with stoppable(), progress_bar(wanted=not quiet) as progress:
        result = execute(
            spec,
            orders.out,
            force=orders.force,
            keep_text=orders.keep_text,
            progress=progress,
            sharing=sharing,
        )
    if not quiet:
        print_result(result)
        print()
    return result


def _together(
    specs: Sequence[RunSpec], sending: Sending, *, quiet: bool
) -> tuple[list[RunResult], int]:
    """The results of the runs that are complete, and the exit code that the others ask for."""
    from saebench_recovery.results.report.seeds_table import print_seeds
    from saebench_recovery.results.store import read_result
    from saebench_recovery.runs.sweep.cells import planned

    plans = planned(specs)
    outcomes = carry_out(plans, sending, quiet=quiet)
    results = [read_result(sending.orders.out / o.identity) for o in outcomes if o.error is None]
    for alike in [] if quiet else _but_for_seed(results):
        print_seeds(alike)
        print()
    return results, report(plans, outcomes)


def _but_for_seed(results: Sequence[RunResult]) -> list[list[RunResult]]:
    """Results of runs that differ in nothing but the seed, together."""
    alike: dict[str, list[RunResult]] = {}
    for result in results:
        spec = {k: v for k, v in result.spec.items() if k != "seed"}
        alike.setdefault(canonical_json(spec), []).append(result)
    return list(alike.values())


def _verified(path: Path, plugins: Sequence[Path], *, quiet: bool) -> int:
    """The exit code of `saebench verify` in a fresh process, where nothing is left of the run."""
    words = ["verify", str(path), *(word for file in plugins for word in ("--plugin", str(file)))]
    command = [sys.executable, "-m", "saebench_recovery", *words]
    sys.stdout.flush()
    return subprocess.run(command, stdout=sys.stderr if quiet else None, check=False).returncode
