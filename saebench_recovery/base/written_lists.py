"""Lists in the cells of a table: as JSON, and as Python, pandas and numpy write them."""

from __future__ import annotations

import ast
import re

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_encodable, parse_json

# numpy puts no commas between items, and Python would join two texts without one.
_TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_ITEM = re.compile(rf"\s*({_TEXT}|{_NUMBER})(\s*,)?\s*", re.DOTALL | re.IGNORECASE)
_AROUND = re.compile(
    r"\s*(?:array\(\s*\[(.*?)\](?:,\s*dtype=[^\[\]()]*)?\s*\)|\[(.*)\]|\((.*)\))\s*", re.DOTALL
)


def written_list(text: str) -> list[object]:
    """The items of a list that is written as JSON, `['a', 'b']`, `['a' 'b']` or `[1 2]`.

    Raises:
        ValueError: it is none, or has commas between some of its items only.
    """
    try:
        value = parse_json(text, "")
    except UserError:
        value = _printed(text)
    if not isinstance(value, list):
        raise ValueError('not a list, such as ["a", "b"]')
    return value


def _printed(text: str) -> list[str] | None:
    around = _AROUND.fullmatch(text)
    if around is None:
        return None
    inside = next(part for part in around.groups() if part is not None).strip()
    items, commas, at = list[str](), list[bool](), 0
    while at < len(inside):
        item = _ITEM.match(inside, at)
        if item is None:
            return None
        items.append(_unquoted(item[1]))
        commas.append(item[2] is not None)
        at = item.end()
    if len(set(commas[:-1])) > 1:
        raise ValueError("commas stand between some of the list's items only")
    return items


def _unquoted(item: str) -> str:
    if item[0] not in "'\"":
        return item
    try:
        text = str(ast.literal_eval(item))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"an item that cannot be read: {error}") from None
    if not is_encodable(text):
        raise ValueError("text with half of a surrogate pair")
    return text
