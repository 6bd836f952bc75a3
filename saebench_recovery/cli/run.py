"""`saebench run`: attack a defense and score what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Numbers are text here, so that one place (the pydantic model of a run) checks and words them.
Text = str
# Which options make a field of a run, where they are called otherwise.
OPTIONS = {
    "target": ("target", "model", "sae"),
    "tasks": ("task",),
    "limits": ("max_drift", "max_decode", "min_fidelity"),
    "defense_config": ("defense_setting",),
    "attack_config": ("attack_setting",),
    "task_config": ("task_setting",),
}


def run(
    context: typer.Context,
    target: Annotated[
        str, typer.Option(help="Name, see `list targets`, or FILE.yaml.", envvar="SAEBENCH_TARGET")
    ] = "organism",
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
    force_sae: Annotated[
        bool,
        typer.Option(
            "--force-sae",
            help="Use SAEs whose metadata name another model or hook.",
            envvar="SAEBENCH_FORCE_SAE",
        ),
    ] = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="published",
            help="Fill in whatever is not said here, and compare.",
            envvar="SAEBENCH_PROTOCOL",
        ),
    ] = None,
    defense: Annotated[
        str, typer.Option(help="See `list defenses`.", envvar="SAEBENCH_DEFENSE")
    ] = "clamp",
    attack: Annotated[
        str, typer.Option(help="See `list attacks`.", envvar="SAEBENCH_ATTACK")
    ] = "orthogonal",
    task: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable; default: all of the target.", envvar="SAEBENCH_TASK"),
    ] = None,
    threat_model: Annotated[
        Text,
        typer.Option(
            metavar="reclamp|post",
            help="Perturb before the defense, or after it.",
            envvar="SAEBENCH_THREAT_MODEL",
        ),
    ] = "reclamp",
    budget: Annotated[
        Text,
        typer.Option(
            metavar="X",
            help="Largest norm of a perturbation.",
            envvar="SAEBENCH_BUDGET",
        ),
    ] = "0.5",
    budget_unit: Annotated[
        Text,
        typer.Option(
            metavar="relative|absolute",
            help="To the defended residual's norm, or as it is.",
            envvar="SAEBENCH_BUDGET_UNIT",
        ),
    ] = "relative",
    max_drift: Annotated[
        Text,
        typer.Option(
            metavar="X",
            help="Relative latent drift of a constrained recovery.",
            envvar="SAEBENCH_MAX_DRIFT",
        ),
    ] = "0.05",
    max_decode: Annotated[
        Text,
        typer.Option(metavar="X", help="The same for decoded drift.", envvar="SAEBENCH_MAX_DECODE"),
    ] = "0.05",
    min_fidelity: Annotated[
        Text,
        typer.Option(
            metavar="X",
            help="Least fidelity of a base-like recovery.",
            envvar="SAEBENCH_MIN_FIDELITY",
        ),
    ] = "0.8",
    seed: Annotated[Text, typer.Option(metavar="N", envvar="SAEBENCH_SEED")] = "0",
    limit: Annotated[
        Text | None,
        typer.Option(metavar="N", help="Evaluation examples per task.", envvar="SAEBENCH_LIMIT"),
    ] = None,
    flops: Annotated[
        Text | None,
        typer.Option(
            metavar="X",
            help="Let the attack spend this many on each flip and budget, instead of its steps.",
            envvar="SAEBENCH_FLOPS",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, sharded, ...", envvar="SAEBENCH_DEVICE")
    ] = "auto",
    dtype: Annotated[
        Text,
        typer.Option(
            metavar="auto|float32|bfloat16",
            help="Of the model; latents are read in float32.",
            envvar="SAEBENCH_DTYPE",
        ),
    ] = "auto",
    batch_size: Annotated[
        Text, typer.Option(metavar="auto|N", envvar="SAEBENCH_BATCH_SIZE")
    ] = "auto",
    defense_setting: Annotated[
        list[str] | None,
        typer.Option(
            "-D",
            metavar="KEY=VALUE",
            help="Setting of the defense, repeatable.",
            envvar="SAEBENCH_DEFENSE_SETTINGS",
        ),
    ] = None,
    attack_setting: Annotated[
        list[str] | None,
        typer.Option(
            "-A",
            metavar="KEY=VALUE",
            help="Setting of the attack, repeatable.",
            envvar="SAEBENCH_ATTACK_SETTINGS",
        ),
    ] = None,
    task_setting: Annotated[
        list[str] | None,
        typer.Option(
            "-T",
            metavar="KEY=VALUE",
            help="Setting of the tasks, repeatable.",
            envvar="SAEBENCH_TASK_SETTINGS",
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
) -> None:
    """Attack a defense and score what comes back.

    The result stands in OUT/<identity>/result.json. A complete run that is repeated is read
    from there; an interrupted one goes on with the tasks that are missing.

    \b
    Examples:
      saebench run --defense clamp --attack orthogonal
      saebench run --defense ablation --attack orthogonal --threat-model post
      saebench run --defense clamp -D latents=16 -D value=0 --budget 0.5
      saebench run --plugin my_defense.py --defense my-clamp --limit 32
      saebench run --protocol published --task ioi --target gpt2-small
      saebench run --task ioi --model gpt2 --sae gpt2-small-res-jb/blocks.4.hook_resid_pre
    """
    from saebench_recovery.base.errors import UserError
    from saebench_recovery.base.settings import parse_assignments, validate
    from saebench_recovery.cli.progress import progress_bar
    from saebench_recovery.registry import load_plugin_file
    from saebench_recovery.results.report.table import print_result
    from saebench_recovery.results.store import RunFolder
    from saebench_recovery.runs.run import execute
    from saebench_recovery.spec import RunSpec
    from saebench_recovery.targets.presets import name_of_parts

    for file in plugin or ():
        load_plugin_file(file)
    spoken = _spoken(context)
    if model or sae:
        if "target" in spoken:
            raise UserError("give --target, or --model with --sae, not both")
        target = name_of_parts(model, sae or ())
    options = {
        "target": target,
        "defense": defense,
        "attack": attack,
        "tasks": task or (),
        "threat_model": threat_model,
        "budget": budget,
        "budget_unit": budget_unit,
        "protocol": protocol,
        "limits": {"drift": max_drift, "decode": max_decode, "fidelity": min_fidelity},
        "seed": seed,
        "limit": limit,
        "dtype": dtype,
        "force_sae": force_sae,
        "flops": flops,
        "device": device,
        "batch_size": None if batch_size == "auto" else batch_size,
        "defense_config": parse_assignments(defense_setting or ()),
        "attack_config": parse_assignments(attack_setting or ()),
        "task_config": parse_assignments(task_setting or ()),
    }
    said = {f: v for f, v in options.items() if spoken & set(OPTIONS.get(f, (f,)))}
    spec = validate(RunSpec, said, "run")
    with progress_bar(wanted=not json) as progress:
        result = execute(spec, out, force=force, keep_text=keep_text, progress=progress)
    path = RunFolder(out, result.identity).result
    if json:
        print(path)
    else:
        print_result(result)
        print(f"\n{path}")


def _spoken(context: typer.Context) -> set[str]:
    """Options that the user gave; a protocol fills in only the others."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {n for n, s in sources.items() if s is not None and "DEFAULT" not in s.name}
