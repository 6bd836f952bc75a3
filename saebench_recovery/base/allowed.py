"""What a setting may be, in words: read off the JSON schema that pydantic makes of its type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = Mapping[str, Any]

WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
}
BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)


def allowed_values(model: type[BaseModel]) -> dict[str, str]:
    """For each field what it may be, such as "a whole number, at least 1", without its default."""
    whole = model.model_json_schema(mode="validation")
    known: Schema = whole.get("$defs", {})
    return {name: _in_words(field, known) for name, field in whole.get("properties", {}).items()}


def default_of(model: type[BaseModel], name: str) -> str | None:
    """The default of a field as it would be written, or None where it has none."""
    field = model.model_fields[name]
    if field.is_required():
        return None
    # Through the model's own serialiser: a tuple of hook points is a list, as on the command line.
    dumped = model.model_construct().model_dump(mode="json", include={name}, warnings=False)
    value = dumped[name]
    return value if isinstance(value, str) else json.dumps(value)


def _in_words(schema: Schema, known: Schema) -> str:
    if "$ref" in schema:
        return _in_words(known[schema["$ref"].rpartition("/")[2]], known)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_in_words(one, known) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        choices = [str(word) for word in schema.get("enum", [schema.get("const")])]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"a list (each {_in_words(items, known)})" if items else "a list"
    words = WORDS.get(schema.get("type", ""), "any value")
    if "minimum" in schema and "maximum" in schema:
        return f"{words} from {schema['minimum']:.15g} to {schema['maximum']:.15g}"
    bounds = [f"{bound} {schema[key]:.15g}" for key, bound in BOUNDS if key in schema]
    return f"{words} {' and '.join(bounds)}" if bounds else words
