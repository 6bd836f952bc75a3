"""Command-line options made from the declarations of a `RunSpec`, and a spec's fields from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import parse_assignments
from saebench_recovery.base.task_file import task_name
from saebench_recovery.spec import OPTIONS, Declared

# Numbers are text here, so that one place (the pydantic model of a run) checks and words them.
TYPES: dict[type, Any] = {
    bool: bool,
    str: str | None,
    tuple: list[str] | None,
    dict: list[str] | None,
}


def place(given: str | Path) -> Path:
    """Where to write; no text would be the folder that the user happens to be in.

    Raises:
        BadParameter: no text.
    """
    if not str(given):
        raise typer.BadParameter("'' names no place to write to")
    return Path(given)


Model = Annotated[
    str,
    typer.Option(
        metavar="ID_OR_PATH",
        help="Hub model or folder, in place of --target.",
        envvar="SAEBENCH_MODEL",
    ),
]
Saes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RELEASE/ID_OR_PATH[@HOOK]",
        help="SAE of that model, repeatable; the first is defended.",
        envvar="SAEBENCH_SAE",
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE.py",
        help="File with a defense, attack or task of your own, repeatable.",
        envvar="SAEBENCH_PLUGIN",
    ),
]
TaskFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE.yaml",
        help="Task out of a table, repeatable; see docs/task-file.md.",
        envvar="SAEBENCH_TASK_FILE",
    ),
]

Jobs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes that work side by side.",
        envvar="SAEBENCH_JOBS",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON in place of tables.", envvar="SAEBENCH_JSON")
]
Out = Annotated[
    Path,
    typer.Option(parser=place, metavar="PATH", help="Folder for results.", envvar="SAEBENCH_OUT"),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Repeat a run that is complete.", envvar="SAEBENCH_FORCE"),
]
KeepText = Annotated[
    bool,
    typer.Option(
        "--keep-text",
        help="Keep prompts and generated answers, in a file of their own.",
        envvar="SAEBENCH_KEEP_TEXT",
    ),
]


def with_spec_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with an option for each that a `RunSpec` declares, in place of its `**options`."""
    own = inspect.signature(verb, eval_str=True).parameters.values()
    named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
    rest = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in named[1:]]
    parameters = [named[0], *map(_parameter, OPTIONS), *rest]
    made: Any = verb
    made.__signature__ = inspect.Signature(parameters)
    made.__annotations__ = {p.name: p.annotation for p in parameters}
    return verb


def _name(one: Declared) -> str:
    return "_".join(one.path)


def _parameter(one: Declared) -> inspect.Parameter:
    names = [one.option.flag] if one.option.short is None else [one.option.short, one.option.flag]
    option = typer.Option(
        *names,
        metavar=one.option.metavar,
        help=one.field.description,
        envvar=one.option.variable,
    )
    default = one.default if one.shape is bool else None
    if one.shape is str:
        (default,) = one.words(one.default)[1:] or (None,)
    return inspect.Parameter(
        _name(one),
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[TYPES[one.shape], option],
    )


def given_fields(context: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `RunSpec` that the user gave; a protocol fills in only the others."""
    fields: dict[str, Any] = {}
    for one in OPTIONS:
        if is_given(context, _name(one)):
            inner = fields
            for name in one.path[:-1]:
                inner = inner.setdefault(name, {})
            inner[one.path[-1]] = _parsed(one, values[_name(one)])
    return fields


def fields_of(
    context: typer.Context, options: Mapping[str, Any], model: str, saes: Sequence[str]
) -> dict[str, Any]:
    """The same, with the target by its parts if it was given so.

    Raises:
        UserError: the target is given twice.
    """
    fields = given_fields(context, options)
    if model or saes:
        from saebench_recovery.targets.presets import name_of_parts

        if is_given(context, "target"):
            raise UserError("give --target, or --model with --sae, not both")
        fields["target"] = name_of_parts(model, saes)
    return fields


def with_tasks_of(files: Sequence[Path], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with the tasks of some task files beside those that are named.

    Raises:
        UserError: see `task_name`.
    """
    if not files:
        return dict(fields)
    return {**fields, "tasks": [*fields.get("tasks", ()), *map(task_name, files)]}


def with_lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with a list for each of which several values were given."""
    listed = {one.path[0] for one in OPTIONS if one.option.listed}
    return {
        name: [part.strip() for part in value.split(",")]
        if name in listed and isinstance(value, str) and "," in value
        else value
        for name, value in fields.items()
    }


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option comes from the command line or the environment."""
    source = context.get_parameter_source(name)
    return source is not None and "DEFAULT" not in source.name


def _parsed(one: Declared, value: Any) -> Any:
    if one.shape is dict:
        return parse_assignments(value)
    return None if one.option.unset is not None and value == one.option.unset else value
