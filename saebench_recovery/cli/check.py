"""`saebench check`: is a defense, an attack or a task what a run takes it for?"""

from __future__ import annotations

from typing import Any

import typer

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
    from saebench_recovery.registry import load_plugin_file
    from saebench_recovery.runs.check import examine
    from saebench_recovery.scoring.check.catalogue import blocked

    for file in (*(plugin or ()), *(task_file or ())):
        load_plugin_file(file)
    fields = with_tasks_of(task_file or (), fields_of(context, options, model, sae or ()))
    spec = validate(RunSpec, fields, "check")
    with stoppable():
        found = examine(spec)
    for label, findings in found.items():
        print(
            f"{label}: {spec.defense} against {spec.attack}:", "" if findings else "nothing found"
        )
        for one in findings:
            print(f"  {one.level}: {one.name}\n    {one.sentence}\n    {one.remedy}")
    if any(blocked(findings) for findings in found.values()):
        raise typer.Exit(1)
