"""Texts and chats as rows of tokens, from files and data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_encodable, text_lines
from saebench_recovery.base.tables import Filled, TableRow, read_table
from saebench_recovery.targets.chat import chat_prompt

if TYPE_CHECKING:
    from saebench_recovery.targets.target import Target

CONTEXT = 128  # tokens of a row, BOS included
HELD_OUT = 16  # one document in so many is measured on, not trained on


class _Text(TableRow):
    text: str


class Chat(TableRow):
    """A request and its answer; without one, the model's own is meant."""

    request: Filled
    answer: str | None = None
    system: Filled | None = None


Documents = Callable[[], Iterator[str | Chat]]
"""Documents of one kind, from the start again at every call."""


@dataclass(frozen=True)
class Source:
    """Where documents come from: texts (see `documents`), a table of chats with answers, or both.

    One chat in sixteen and one text in sixteen are held out.
    """

    text: str | None = None
    chats: str | None = None

    def held_out(self) -> Iterator[str | Chat]:
        """The documents that training leaves alone: chats and texts in turn while both last."""
        each = [islice(kind(), 0, None, HELD_OUT) for kind in self._kinds()]
        together = chain.from_iterable(zip_longest(*each))
        return (document for document in together if document is not None)

    def trained_on(self) -> list[Documents]:
        """All the others, of either kind."""
        return [partial(_others, kind) for kind in self._kinds()]

    def __str__(self) -> str:
        return " and ".join(filter(None, (self.text, self.chats)))

    def _kinds(self) -> list[Documents]:
        chats, text = self.chats, self.text
        found: list[Documents] = [] if chats is None else [lambda: read_table(chats, Chat)]
        return found if text is None else [*found, lambda: documents(text)]


def _others(kind: Documents) -> Iterator[str | Chat]:
    return (document for i, document in enumerate(kind()) if i % HELD_OUT)


def documents(source: str) -> Iterator[str]:
    """The texts of a source, blank ones left out.

    Args:
        source: a `.txt` file, whose documents are separated by blank lines, or a table with a
            column `text`; see `read_table`.

    Raises:
        UserError: it cannot be read.
    """
    if Path(source).suffix.lower() == ".txt":
        yield from _paragraphs(source)
    else:
        yield from (row.text for row in read_table(source, _Text) if row.text.strip())


def _paragraphs(source: str) -> Iterator[str]:
    lines: list[str] = []
    for line in text_lines(source):
        if not is_encodable(line):
            raise UserError(f"cannot read {source!r}: not UTF-8")
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


def context(target: Target) -> int:
    """Tokens of a row."""
    config: Any = target.model.config
    return min(CONTEXT, int(config.max_position_embeddings))


def rows(target: Target, every: Iterable[str | Chat]) -> Iterator[tuple[int, ...]]:
    """Rows of at most `context` tokens.

    A text is cut into pieces, each with a BOS where the target uses one. A chat is one row in the
    model's own template, and what of its answer is beyond the row's end is left out.
    """
    bos = () if target.bos is None else (target.bos,)
    size = context(target) - len(bos)
    for document in every:
        if isinstance(document, Chat):
            prompt = chat_prompt(target, document.request, document.system)
            yield (*prompt, *_ids(target, document.answer or ""))[: context(target)]
        else:
            ids = _ids(target, document)
            for begin in range(0, len(ids), size):
                yield (*bos, *ids[begin : begin + size])


def _ids(target: Target, text: str) -> tuple[int, ...]:
    return tuple(target.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def content_count(target: Target, row: tuple[int, ...]) -> int:
    """Tokens of a row that are read: neither the first one nor any special token."""
    return sum(token not in target.special for token in row[1:])


def endless_rows(target: Target, source: Source, least: int) -> Iterator[tuple[int, ...]]:
    """Rows to train on, of each kind in turn, each from its start again when it ends.

    Raises:
        UserError: there are fewer than `least` tokens to train on, or none of one kind.
    """
    kinds = source.trained_on()
    tokens = [_counted(target, rows(target, kind()), least) for kind in kinds]
    if sum(tokens) < least or not all(tokens):
        raise UserError(
            f"{source} is too short to train on: {sum(tokens)} tokens besides the held-out "
            f"documents (one in {HELD_OUT}), fewer than the {least} latents; give more text or a "
            "smaller --width"
        )
    each = [_again_and_again(target, kind) for kind in kinds]
    return chain.from_iterable(zip(*each, strict=True))


def _counted(target: Target, every: Iterator[tuple[int, ...]], least: int) -> int:
    """Content tokens of the rows, until there are enough."""
    found = 0
    for row in every:
        found += content_count(target, row)
        if found >= least:
            break
    return found


def _again_and_again(target: Target, kind: Documents) -> Iterator[tuple[int, ...]]:
    while True:
        yield from rows(target, kind())
