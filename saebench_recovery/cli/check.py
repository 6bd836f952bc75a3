"""`saebench check`: is a defense, an attack or a task what a run takes it for?"""

from __future__ import annotations

from typing import Any

import typer

from saebench_recovery.base.printable import printable
from saebench_recovery.base.settings import validate
from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.options import (
    Model,
    Plugins,
    Saes,
    TaskFiles,
    fields_of,
    with_spec_options,
    with_tasks_of,
)
from saebench_recovery.cli.sweeping import prepare
from saebench_recovery.spec import RunSpec


@with_spec_options
def check(
    context: typer.Context,
    model: Model = "",
    sae: Saes = None,
    plugin: Plugins = None,
    task_file: TaskFiles = None,
    **options: Any,
) -> None:
    """Check a defense, an attack and tasks, and print what is wrong and what to do about it.

    Every run does the same before it scores anything. Exit code 1 if something is found that
    keeps a row from being scored (error) or ranked (invalid).

    \b
    Examples:
      saebench check --defense clamp
      saebench check --plugin my_defense.py --defense my-clamp --task ioi
    """
    from saebench_recovery.runs.check import examine
    from saebench_recovery.scoring.check.catalogue import blocked

    fields = with_tasks_of(task_file or (), fields_of(context, options, model, sae or ()))
    spec = validate(RunSpec, fields, "check")
    prepare([*(plugin or ()), *(task_file or ())], spec)
    with stoppable():
        found = examine(spec)
    for label, findings in found.items():
        head = f"{label}: {spec.defense} against {spec.attack}:"
        print(printable(head if findings else f"{head} nothing found"))
        for one in findings:
            for line in (f"  {one.level}: {one.name}", f"    {one.sentence}", f"    {one.remedy}"):
                print(printable(line))
    if any(blocked(findings) for findings in found.values()):
        raise typer.Exit(1)
