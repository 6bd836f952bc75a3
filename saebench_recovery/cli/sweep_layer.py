"""`saebench sweep-layer`: one run for each hook point that may be perturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from saebench_recovery.base.settings import validate
from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.options import (
    Json,
    Model,
    Out,
    Plugins,
    Saes,
    fields_of,
    with_spec_options,
)
from saebench_recovery.cli.sweeping import prepare
from saebench_recovery.spec import RunSpec


@with_spec_options
def sweep_layer(
    context: typer.Context,
    *,
    model: Model = "",
    sae: Saes = None,
    plugin: Plugins = None,
    out: Out = Path("runs"),
    json: Json = False,
    **options: Any,
) -> None:
    """Move the perturbed hook point through the model, at one budget and for the smallest norm.

    Each is an ordinary run in OUT, and read from there if it is complete. Beside the curve stands
    the share of valid flips that no hook point recovers.

    \b
    Example:
      saebench sweep-layer --task ioi --defense clamp --attack orthogonal --limit 32
    """
    from saebench_recovery.cli.progress import progress_bar
    from saebench_recovery.results.report.layer_table import print_layers
    from saebench_recovery.runs.layers import sweep_layer as sweep

    spec = validate(RunSpec, fields_of(context, options, model, sae or ()), "sweep-layer")
    prepare(plugin or (), spec)
    with stoppable(), progress_bar(wanted=not json) as progress:
        found = sweep(spec, out, progress)
    if json:
        print("[" + ",\n".join(one.model_dump_json() for one in found) + "]")
    else:
        print_layers(found)
