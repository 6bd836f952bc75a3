"""`saebench run`: attack a defense and score what comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.printable import printable
from saebench_recovery.base.settings import validate
from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.options import given_fields, is_given, with_spec_options
from saebench_recovery.spec import RunSpec


@with_spec_options
def run(
    context: typer.Context,
    *,
    model: Annotated[
        str,
        typer.Option(
            metavar="ID_OR_PATH",
            help="Hub model or folder, in place of --target.",
            envvar="SAEBENCH_MODEL",
        ),
    ] = "",
    sae: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RELEASE/ID_OR_PATH[@HOOK]",
            help="SAE of that model, repeatable; the first is defended.",
            envvar="SAEBENCH_SAE",
        ),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.py",
            help="File with a defense, attack or task of your own, repeatable.",
            envvar="SAEBENCH_PLUGIN",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Run with each seed from 0 to N - 1, and show how far apart the figures lie.",
            envvar="SAEBENCH_SEEDS",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.", envvar="SAEBENCH_OUT")] = Path(
        "runs"
    ),
    json: Annotated[
        bool,
        typer.Option("--json", help="Print only the path of result.json.", envvar="SAEBENCH_JSON"),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Repeat a run that is complete.", envvar="SAEBENCH_FORCE"),
    ] = False,
    keep_text: Annotated[
        bool,
        typer.Option(
            "--keep-text",
            help="Keep prompts and generated answers, in a file of their own.",
            envvar="SAEBENCH_KEEP_TEXT",
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Verify the result in a process of its own; its exit code is the run's.",
            envvar="SAEBENCH_VERIFY",
        ),
    ] = False,
    **options: Any,
) -> None:
    """Attack a defense and score what comes back.

    The result stands in OUT/<identity>/result.json. A complete run that is repeated is read
    from there; an interrupted one goes on where it was stopped.

    \b
    Examples:
      saebench run --defense clamp --attack orthogonal
      saebench run --defense ablation --attack orthogonal --threat-model post
      saebench run --defense clamp -D latents=16 -D value=0 --budget 0.5
      saebench run --defense clamp --task ioi --seeds 3
      saebench run --plugin my_defense.py --defense my-clamp --limit 32
      saebench run --protocol published --task ioi --target gpt2-small
      saebench run --task ioi --model gpt2 --sae gpt2-small-res-jb/blocks.4.hook_resid_pre
    """
    from saebench_recovery.cli.progress import progress_bar
    from saebench_recovery.registry import load_plugin_file
    from saebench_recovery.results.report.seeds_table import print_seeds
    from saebench_recovery.results.report.table import print_result
    from saebench_recovery.results.store import RESULT
    from saebench_recovery.runs.run import allow_named, execute

    for file in plugin or ():
        load_plugin_file(file)
    spec = spec_of(context, options, model, sae or ())
    allow_named(spec)
    if seeds is not None and is_given(context, "seed"):
        raise UserError("give --seed or --seeds, not both")
    each = [spec] if seeds is None else [_seeded(spec, seed) for seed in range(seeds)]
    with stoppable(), progress_bar(wanted=not json) as progress:
        results = [
            execute(one, out, force=force, keep_text=keep_text, progress=progress) for one in each
        ]
    if not json and len(results) == 1:
        print_result(results[0])
        print()
    elif not json:
        print_seeds(results)
        print()
    paths = [out / result.identity / RESULT for result in results]
    for path in paths:
        print(printable(str(path)))
    if verify:
        codes = [_verified(path, plugin or (), quiet=json) for path in paths]
        raise typer.Exit(max(codes))


def _seeded(spec: RunSpec, seed: int) -> RunSpec:
    return spec.model_copy(update={"seed": seed})


def _verified(path: Path, plugins: Sequence[Path], *, quiet: bool) -> int:
    """The exit code of `saebench verify` in a fresh process, where nothing is left of the run."""
    words = ["verify", str(path), *(word for file in plugins for word in ("--plugin", str(file)))]
    command = [sys.executable, "-m", "saebench_recovery", *words]
    sys.stdout.flush()
    return subprocess.run(command, stdout=sys.stderr if quiet else None, check=False).returncode


def spec_of(
    context: typer.Context, options: dict[str, Any], model: str, saes: list[str] | tuple[str, ...]
) -> RunSpec:
    """The spec that the options stand for, with every field unset that the user left open.

    Raises:
        UserError: a value does not fit, or the target is given twice.
    """
    fields = given_fields(context, options)
    if model or saes:
        from saebench_recovery.targets.presets import name_of_parts

        if is_given(context, "target"):
            raise UserError("give --target, or --model with --sae, not both")
        fields["target"] = name_of_parts(model, saes)
    return validate(RunSpec, fields, "run")
