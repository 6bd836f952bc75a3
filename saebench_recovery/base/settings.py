"""Settings as a user gives them: `key=value` text, checked against a pydantic model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from saebench_recovery.base.allowed import allowed_values, default_of
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import JSONSyntaxError, is_encodable, parse_json

Model = TypeVar("Model", bound=BaseModel)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` strings. A value is JSON; what is not JSON is taken as text.

    Raises:
        UserError: a string has no `=` or no key, or its value is beyond the limits of `reading`.
    """
    parsed = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{assignment!r} is not of the form key=value")
        parsed[key.strip()] = _scalar(text.strip(), key.strip())
    return parsed


def _scalar(text: str, key: str) -> Any:
    try:
        return parse_json(text, f"setting {key!r}")
    except JSONSyntaxError:
        if not is_encodable(text):
            raise UserError(f"setting {key!r} is not UTF-8") from None
        return text


def validate(model: type[Model], values: Mapping[str, Any], what: str) -> Model:
    """Build the model; `what` names it in the message, such as "defense 'clamp'".

    Raises:
        UserError: an unknown key, or a value that does not fit. The line names every bad key
            and says what is allowed.
    """
    try:
        built = model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"{what}: {_reasons(model, error.errors())}") from None
    for key, value in built.model_dump(mode="json").items():
        try:
            canonical_json(value)
        except ValueError:
            raise UserError(f"{what}: {key} is {value!r}: must be finite") from None
    return built


def _reasons(model: type[BaseModel], problems: list[ErrorDetails]) -> str:
    by_key: dict[str, list[ErrorDetails]] = {}
    for problem in problems:
        key = str(problem["loc"][0]) if problem["loc"] else ""
        by_key.setdefault(key, []).append(problem)
    return "; ".join(_reason(model, key, found) for key, found in by_key.items())


def _reason(model: type[BaseModel], key: str, problems: list[ErrorDetails]) -> str:
    # A misspelled key goes first: it explains one that is missing.
    for problem in sorted(problems, key=lambda problem: problem["type"] != "extra_forbidden"):
        *before, last = problem["loc"] or ("",)
        holder, where = _model_at(model, before), "".join(f"{part}." for part in before)
        if holder is not None and problem["type"] == "extra_forbidden":
            return unknown_key(str(last), holder.model_fields, where)
        if holder is not None and problem["type"] == "missing":
            return f"{where}{last} is missing; allowed: {_describe(holder, str(last))}"
    # Only our own checks say more than that the value is not among what is allowed.
    ours = [p["msg"].removeprefix("Value error, ") for p in problems if p["type"] == "value_error"]
    if key not in model.model_fields:
        return " or ".join(ours or [_lower(p["msg"]) for p in problems])
    where, given = key, problems[0]["input"]
    if len(problems) == 1:
        *before, last = problems[0]["loc"]
        where, inner = ".".join(map(str, problems[0]["loc"])), _model_at(model, before)
        if before and inner is not None and last in inner.model_fields:
            model, key = inner, str(last)
    because = f" ({' or '.join(ours)})" if ours else ""
    close = get_close_matches(str(given), _choices(model.model_fields[key].annotation), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{where} is {given!r}{because}; {hint}allowed: {_describe(model, key)}"


def _model_at(model: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    """The model of what stands at a place inside a model's value, if it is one alone."""
    found: Any = model
    for part in place:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(part))
            found = None if field is None else field.annotation
        else:
            found = next(iter(get_args(found)[1:]), None)  # of a mapping, its values
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _choices(annotation: Any) -> list[str]:
    """The words among which a setting chooses."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for inner in get_args(annotation) for word in _choices(inner)]


def unknown_key(key: str, known: Iterable[str], where: str = "") -> str:
    """What is said of a key that is not allowed `where` it stands, such as "tasks.ioi."."""
    names = list(known)
    close = get_close_matches(key, names, n=1)
    hint = f"did you mean {where + close[0]!r}? " if close else ""
    return f"unknown key {where + key!r}; {hint}allowed: {', '.join(names) or 'none'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The second half of an "unknown name" message: the closest known name, then all of them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names) or 'none'}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _describe(model: type[BaseModel], name: str) -> str:
    """What a key may be and its default, such as "a whole number, at least 1 (default 32)"."""
    default = default_of(model, name)
    ending = "" if default is None else f" (default {default})"
    return f"{allowed_values(model)[name]}{ending}"


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    kind = type(value)
    if value is None or kind is bool:
        return WORDS[value]
    # What an encoder is set up with for each value takes ten times as long as most values.
    if kind is int or (kind is float and isfinite(value)):
        return repr(value)
    return _one_spelling.encode(value)


WORDS = {None: "null", True: "true", False: "false"}
# Made once: `json.dumps` makes an encoder for each value, which takes longer than to use it.
_one_spelling = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
