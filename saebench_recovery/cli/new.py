"""`saebench new`: a file with a defense, an attack or a task of one's own, to start from."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from saebench_recovery.base.catalogue import Kind
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import nearest


def new(
    kind: Annotated[str, typer.Argument(metavar="defense|attack|task")],
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="Names the plugin, too.")],
) -> None:
    """Write a commented plugin that runs, to be changed into one's own.

    \b
    Example:
      saebench new defense my_defense.py
    """
    from saebench_recovery import registry

    if kind not in get_args(Kind):
        raise UserError(f"cannot write a new {kind!r}; {nearest(kind, get_args(Kind))}")
    stem = file.stem
    if file.suffix != ".py" or not re.fullmatch("[a-z][a-z0-9_]*", stem):
        raise UserError(
            f"{str(file)!r} does not name a plugin file; use small letters, digits and "
            f"underscores, such as my_{kind}.py"
        )
    text = files("saebench_recovery.cli.skeletons").joinpath(f"{kind}.py").read_text("utf-8")
    name = stem.replace("_", "-")
    if name in registry.listing(cast(Kind, kind)):
        raise UserError(f"{kind} name {name!r} is taken; choose another file name")
    made, own = stem.title().replace("_", ""), f"My{kind.capitalize()}"
    if keyword.iskeyword(made) or re.search(rf"\b{made}\b", text.replace(own, "")):
        raise UserError(f"a class {made!r} would hide what plugins use; choose another file name")
    text = text.replace(f"my_{kind}.py", file.name).replace(f"my-{kind}", name)
    text = text.replace(own, made)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UserError(f"{str(file)!r} exists; choose another name") from None
    print(f"{file}: {kind} {name!r}. Next:")
    print(*(line for line in text.splitlines() if line.startswith("saebench ")), sep="\n")
