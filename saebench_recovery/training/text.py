"""Text as rows of tokens: from a file, a data set, or the model itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_encodable, text_lines
from saebench_recovery.base.tables import TableRow, read_table

if TYPE_CHECKING:
    from saebench_recovery.base.progress import Progress
    from saebench_recovery.targets.target import Target

CONTEXT = 128  # tokens of a row, BOS included
SAMPLED_ROWS = 64  # texts that the model writes at once
HELD_OUT = 16  # one document in so many is measured on, not trained on


class _Text(TableRow):
    text: str


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


def held_out(source: str) -> Iterator[str]:
    """The documents that training leaves alone: the first one and every sixteenth after it."""
    yield from islice(documents(source), 0, None, HELD_OUT)


def trained_on(source: str) -> Iterator[str]:
    """All the others."""
    yield from (text for i, text in enumerate(documents(source)) if i % HELD_OUT)


def context(target: Target) -> int:
    """Tokens of a row."""
    config: Any = target.model.config
    return min(CONTEXT, int(config.max_position_embeddings))


def rows(target: Target, texts: Iterable[str]) -> Iterator[tuple[int, ...]]:
    """Each text in pieces of at most `context` tokens, with a BOS where the target uses one."""
    bos = () if target.bos is None else (target.bos,)
    size = context(target) - len(bos)
    for text in texts:
        ids = target.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for begin in range(0, len(ids), size):
            yield (*bos, *ids[begin : begin + size])


def content_count(target: Target, row: tuple[int, ...]) -> int:
    """Tokens of a row that are read: neither the first one nor any special token."""
    return sum(token not in target.special for token in row[1:])


def endless_rows(target: Target, source: str, least: int) -> Iterator[tuple[int, ...]]:
    """Rows to train on, from the start again when the text ends.

    Raises:
        UserError: the text has fewer than `least` tokens to train on.
    """
    found = 0
    for row in rows(target, trained_on(source)):
        found += content_count(target, row)
        if found >= least:
            return _again_and_again(target, source)
    raise UserError(
        f"{source} is too short to train on: {found} tokens besides the held-out documents (one in "
        f"{HELD_OUT}), fewer than the {least} latents; give more text or a smaller --width"
    )


def _again_and_again(target: Target, source: str) -> Iterator[tuple[int, ...]]:
    while True:
        yield from rows(target, trained_on(source))


@torch.no_grad()
def write_sampled(
    target: Target, file: Path, tokens: int, seed: int, progress: Progress | None = None
) -> None:
    """Let the model write text of so many tokens, from nothing, at temperature 1.

    A file that holds some of it already, from a run that was cut off, is added to.

    Raises:
        UserError: the model has no token to begin with, or the file cannot be written.
    """
    model: Any = target.model
    start = target.bos if target.bos is not None else target.tokenizer.eos_token_id
    if start is None:
        raise UserError(f"{target.name} has neither BOS nor EOS to begin with; give it a --text")
    begin = torch.full((SAMPLED_ROWS, 1), start, device=target.device)
    group = _whole_groups(file)
    written = documents(str(file)) if group else ()
    found = sum(content_count(target, row) for row in rows(target, written))
    while found < tokens:
        if progress is not None:
            progress("writing text", found, tokens)
        with torch.random.fork_rng():
            torch.manual_seed(seed * 2**24 + group)
            made = model.generate(
                begin,
                attention_mask=torch.ones_like(begin),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_length=context(target),
                pad_token_id=model.config.pad_token_id or 0,
            )
        texts = [target.tokenizer.decode(ids, skip_special_tokens=True) for ids in made.tolist()]
        found += sum(content_count(target, row) for row in rows(target, texts))
        try:
            with file.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        except OSError as error:
            raise UserError(
                f"{file} cannot be written: {error.strerror}; repeated, the command goes on there"
            ) from None
        group += 1


def _whole_groups(file: Path) -> int:
    """Groups of texts that the file holds; what was cut off in the middle of one is removed."""
    if not file.exists():
        return 0
    with file.open("rb+") as lines:
        ends = [0]
        for line in lines:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        groups = (len(ends) - 1) // SAMPLED_ROWS
        lines.truncate(ends[groups * SAMPLED_ROWS])
        os.fsync(lines.fileno())
    return groups
