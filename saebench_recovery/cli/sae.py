"""`saebench sae`: train an SAE on a target's model, or measure one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saebench_recovery.base.printable import printable
from saebench_recovery.cli.interrupt import stoppable
from saebench_recovery.cli.options import Json, place

if TYPE_CHECKING:
    from saebench_recovery.training.quality import Quality

sae = typer.Typer(
    help="Train an SAE on a target's model, or measure one.",
    rich_markup_mode=None,
)

Target = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE.yaml|ID_OR_PATH",
        help="See `list targets`; or a hub model or folder.",
        envvar="SAEBENCH_TARGET",
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, sharded, ...", envvar="SAEBENCH_DEVICE")
]


@sae.command()
def train(
    *,
    hook: Annotated[str, typer.Option(metavar="HOOK", help="Such as blocks.9.hook_resid_post.")],
    out: Annotated[Path, typer.Option(parser=place, metavar="PATH", help="Folder of the SAE.")],
    target: Target = "organism",
    text: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Text file, CSV, JSONL, Parquet or data set; default: the model writes its own.",
        ),
    ] = "",
    chat: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Table of chats, with or without --text: request, answer (if none, the model's).",
        ),
    ] = "",
    architecture: Annotated[
        str, typer.Option(metavar="batchtopk|topk|jumprelu", help="batchtopk becomes jumprelu.")
    ] = "batchtopk",
    width: Annotated[str, typer.Option(metavar="N", help="Latents.")] = "4096",
    l0: Annotated[str, typer.Option(metavar="N", help="Latents on at a token.")] = "64",
    tokens: Annotated[
        str, typer.Option(metavar="N", help="To train on; short text is read again.")
    ] = "1000000",
    seed: Annotated[str, typer.Option(metavar="N")] = "0",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train an SAE with SAELens and measure it on held-out text.

    A command that was cut off goes on when it is repeated.

    \b
    Examples:
      saebench sae train --target gemma-3-270m --hook blocks.9.hook_resid_post \\
        --text wiki.parquet --out my-sae
      saebench run --task ioi --model gemma-3-270m --sae my-sae
    """
    from saebench_recovery.base.settings import validate
    from saebench_recovery.base.sites import Site
    from saebench_recovery.cli.progress import progress_bar
    from saebench_recovery.training.recipe import Recipe

    said = {
        "target": target,
        "hook": str(Site.parse(hook)),
        "text": text or None,
        "chat": chat or None,
        "architecture": architecture,
        "width": width,
        "l0": l0,
        "tokens": tokens,
        "seed": seed,
    }
    recipe = validate(Recipe, said, "training")
    from saebench_recovery.base import named_code
    from saebench_recovery.training.run import train_on_target

    named_code.allow(target)
    with stoppable(), progress_bar(wanted=not json) as progress:
        try:
            found = train_on_target(recipe, out, device, progress)
        except KeyboardInterrupt as stop:
            line = f"the same command goes on from what {str(out)!r} holds"
            raise type(stop)(line) from None
    _print([found], json=json)
    if not json:
        print(f"\n{printable(str(out))}")


@sae.command("eval")
def evaluate(
    *,
    text: Annotated[
        str,
        typer.Option(metavar="SOURCE", help="Text file, CSV, JSONL, Parquet or data set."),
    ],
    target: Target = "organism",
    place: Annotated[
        str,
        typer.Option(
            "--sae", metavar="PLACE[@HOOK]", help="Folder or RELEASE/ID; default: the target's own."
        ),
    ] = "",
    device: Device = "auto",
    force_sae: Annotated[
        bool, typer.Option("--force-sae", help="Even if its metadata name another model or hook.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure an SAE on text: what it explains, how sparse it is, what the model loses by it.

    \b
    Example:
      saebench sae eval --target gemma-3-270m --sae my-sae --text wiki.parquet
    """
    from saebench_recovery.base import named_code
    from saebench_recovery.base.errors import UserError
    from saebench_recovery.targets.loading import load_target
    from saebench_recovery.targets.presets import name_of_parts
    from saebench_recovery.training.quality import quality
    from saebench_recovery.training.text import documents

    name = name_of_parts(target, [place]) if place else target
    named_code.allow(target)
    loaded = load_target(name, device, force_sae=force_sae)
    if not loaded.dictionaries:
        raise UserError(f"{target} has no SAE of its own; give it one with --sae PLACE")
    with stoppable():
        found = [quality(loaded, site, documents(text)) for site in loaded.dictionaries]
    _print(found, json=json)


def _print(every: list[Quality], *, json: bool) -> None:
    """One JSON line, or a table, for each SAE."""
    if json:
        for found in every:
            print(found.model_dump_json())
        return
    from rich.console import Console
    from rich.table import Table

    from saebench_recovery.results.report.escape import terminal

    for found in every:
        table = Table(terminal(found.hook), "", box=None, header_style="bold", pad_edge=False)
        for name, value in _lines(found):
            table.add_row(name, terminal(value))
        Console().print(table)


def _lines(found: Quality) -> list[tuple[str, str]]:
    read, ce = found.reconstruction, found.cross_entropy
    massive = ", ".join(map(str, read.massive_dimensions)) or "none"
    return [
        ("architecture", f"{found.architecture}, {found.width} latents"),
        ("explained variance", f"{_figure(read.explained_variance)} of {read.tokens} tokens"),
        ("  without massive dimensions", _figure(read.explained_variance_without_massive)),
        ("  massive dimensions", f"{massive}; share of variance {_figure(read.massive_share)}"),
        ("L0", f"{read.l0:.1f}"),
        ("dead share", f"{read.dead:.3f} (on at none of these tokens)"),
        ("cross-entropy recovered", f"{_figure(ce.recovered)} on {ce.tokens} tokens"),
        (
            "  nats per token",
            f"clean {ce.clean:.3f}, spliced {ce.spliced:.3f}, zero {ce.ablated:.3f}",
        ),
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
