"""Requests to an assistant: the embedded, invented ones, or those of any table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.splits import split_of
from saebench_recovery.base.tables import Filled, TableRow, read_table
from saebench_recovery.targets.organism import world

EMBEDDED = "requests"
WITH_CONTEXT = "{context}\n\n---\n\n{request}"  # as HarmBench (arXiv 2402.04249) puts its contexts


@dataclass(frozen=True)
class Request:
    """A user's text; `item` names what it is made from, if several are made from one thing."""

    text: str
    item: str = ""


@dataclass(frozen=True)
class Table:
    """Where requests stand; `columns` names the columns of `Row`'s fields."""

    source: str
    split: str | None = None
    subset: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


class Row(TableRow):
    request: Filled
    context: str | None = None
    item: Filled | None = None


def embedded(kind: world.Kind, part: Literal["selection", "evaluation"]) -> list[Request]:
    """Invented requests, in every phrasing."""
    phrasings = len(world.load("requests")["phrasings"])
    return [
        Request(world.messages(request, None, i % phrasings)[0]["content"])
        for i, request in enumerate(world.requests(kind, part))
    ]


def tabulated(table: Table, part: Literal["selection", "evaluation"]) -> list[Request]:
    """Different requests of a table, 30 % of them for selection; those of an item stay together.

    Raises:
        UserError: it cannot be read, or none of its requests is left for that part.
    """
    found: dict[str, Request] = {}
    rows = read_table(
        table.source, Row, columns=table.columns, split=table.split, subset=table.subset
    )
    for row in rows:
        context = row.context if row.context and row.context.strip() else None
        text = WITH_CONTEXT.format(context=context, request=row.request) if context else row.request
        found.setdefault(text, Request(text, row.item or ""))
    chosen = [
        request
        for request in found.values()
        if split_of(request.item or request.text, selection=0.3, evaluation=0.7) == part
    ]
    if not chosen:
        raise UserError(f"{table.source} has too few requests: none is left for {part}")
    return chosen
