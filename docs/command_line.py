"""Writes the reference of the command line and of a run's options from their declarations.

python -m docs.command_line           writes docs/reference/command-line.md and run-options.md
python -m docs.command_line --check   fails if they are out of date
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from saebench_recovery.base.allowed import allowed_values
from saebench_recovery.cli import app
from saebench_recovery.spec import OPTIONS, Declared, Limits, RunSpec

FOLDER = Path(__file__).parent / "reference"
GENERATED = "<!-- written by `python -m docs.command_line` -->"


def command_line() -> str:
    """A section for each verb: its usage, what it does, arguments and options, examples."""
    root: Any = typer.main.get_command(app)
    intro = [
        "# The command line",
        "",
        GENERATED,
        "",
        "Every option that names a variable may also come from the environment. Bad input is one",
        "line on standard error and exit code 2.",
        "",
        *_table(_options(root)),
    ]
    return "\n".join([*intro, *_verbs(root, "saebench")]) + "\n"


def _verbs(group: Any, path: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        yield from _verb(command, f"{path} {name}")
        if hasattr(command, "commands"):
            yield from _verbs(command, f"{path} {name}")


def _verb(command: Any, path: str) -> Iterator[str]:
    text = inspect.cleandoc(command.help or "")
    about, *examples = text.split("\b\n")
    arguments = [_metavar(p) for p in command.params if p.param_type_name == "argument"]
    yield from ("", f"## {path}", "", "```text")
    yield " ".join([path, *arguments, "[OPTIONS]"])
    yield from ("```", "", _text(about.strip()))
    yield from ["", *_table([*_arguments(command), *_options(command)])]
    for example in examples:
        lines = [line.strip() for line in example.splitlines()[1:] if line.strip()]
        yield from ("", "```sh", *lines, "```")


def _arguments(command: Any) -> Iterator[tuple[str, str, str]]:
    for param in command.params:
        if param.param_type_name == "argument" and getattr(param, "help", None):
            yield f"`{_metavar(param)}`", param.help, ""


def _options(command: Any) -> Iterator[tuple[str, str, str]]:
    for param in command.params:
        if param.param_type_name != "option" or param.hidden or "completion" in param.name:
            continue
        names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
        value = "" if param.is_flag else f" `{_metavar(param)}`"
        yield names + value, param.help or "", f"`{param.envvar}`" if param.envvar else ""


def _text(text: str) -> str:
    """What is in angle brackets stands for something, and is no HTML."""
    return text.replace("<", "&lt;")


def _metavar(param: Any) -> str:
    shown: str = param.metavar or param.name.upper()
    return shown


def _table(rows: Any) -> list[str]:
    cells = [[_text(cell).replace("|", "\\|") for cell in row] for row in rows]
    if not cells:
        return []
    heads = ["", "meaning", "variable"]
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * 3, *cells)]


def run_options() -> str:
    """A table of the fields of a `RunSpec`."""
    lines = [
        "# Options of a run",
        "",
        GENERATED,
        "",
        "They are keywords of `run` and `check` in Python (limits as `limits={'drift': 0.1}`),",
        "flags of the same verbs on the command line, and keys of a grid of runs.",
        "",
        "| Python | command line | allowed | default | meaning |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_run_option, OPTIONS)]) + "\n"


def _run_option(one: Declared) -> str:
    model = RunSpec if len(one.path) == 1 else Limits
    names = [name for name in (one.option.short, one.option.flag) if name]
    shown = ", ".join(f"`{name}`" for name in names)
    default = "none" if one.default is None else f"`{one.default}`"
    cells = [f"`{'.'.join(one.path)}`", shown, allowed_values(model)[one.path[-1]], default]
    return f"| {' | '.join([*cells, one.field.description or ''])} |"


PAGES = {"command-line.md": command_line, "run-options.md": run_options}


def main(arguments: list[str]) -> str | None:
    """Writes or checks; the result is a message for standard error, or None."""
    if arguments not in ([], ["--check"]):
        return "usage: python -m docs.command_line [--check]"
    for name, write in PAGES.items():
        file, text = FOLDER / name, write()
        if not arguments:
            file.write_text(text, "utf-8")
        elif not file.exists() or file.read_text("utf-8") != text:
            return f"{name} is out of date: run `python -m docs.command_line`"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
