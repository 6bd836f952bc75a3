"""What the model itself writes to be trained on: texts from nothing, and answers to requests.

Both go to a JSONL file in groups of documents. A file that holds some groups already, from a run
that was cut off, is added to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.tables import read_table
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.examples import Example
from saebench_recovery.model.generation import written
from saebench_recovery.targets.chat import chat_prompt
from saebench_recovery.training.text import Chat, content_count, context, documents, rows

if TYPE_CHECKING:
    from saebench_recovery.base.progress import Progress
    from saebench_recovery.targets.target import Target

TEXTS, CHATS = 64, 256  # documents of a group; of the chats some have their answers already


@torch.no_grad()
def write_sampled(
    target: Target, file: Path, tokens: int, seed: int, progress: Progress | None = None
) -> None:
    """Let the model write text of so many tokens, from nothing, at temperature 1.

    Raises:
        UserError: the model has no token to begin with, or the file cannot be written.
    """
    model: Any = target.model
    start = target.bos if target.bos is not None else target.tokenizer.eos_token_id
    if start is None:
        raise UserError(f"{target.name} has neither BOS nor EOS to begin with; give it a --text")
    begin = torch.full((TEXTS, 1), start, device=target.device)
    group = _whole_groups(file, TEXTS)
    before = documents(str(file)) if group else ()
    found = sum(content_count(target, row) for row in rows(target, before))
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
        _add(file, [{"text": text} for text in texts])
        group += 1


def write_answers(
    target: Target, source: str, file: Path, progress: Progress | None = None
) -> None:
    """Write down a table's chats, with the model's own greedy answer where a chat has none.

    Raises:
        UserError: the table cannot be read, a request leaves no room for an answer, or the file
            cannot be written.
    """
    every = list(read_table(source, Chat))
    for begin in range(_whole_groups(file, CHATS) * CHATS, len(every), CHATS):
        if progress is not None:
            progress("writing answers", begin, len(every))
        group = every[begin : begin + CHATS]
        _add(file, [chat.model_dump() for chat in _answered(target, source, group)])


def _answered(target: Target, source: str, chats: Sequence[Chat]) -> Iterator[Chat]:
    """The chats in their order, those without an answer with the model's own."""
    asked = [chat for chat in chats if chat.answer is None]
    prompts = [chat_prompt(target, chat.request, chat.system) for chat in asked]
    longest = max(map(len, prompts), default=0)
    room = context(target) - longest
    if room < 1:
        raise UserError(
            f"{source}: a request of {longest} tokens leaves no room for an answer in a row of "
            f"{context(target)}; leave it out, or give its answer"
        )
    examples = [Example("", prompt, ((0,),)) for prompt in prompts]
    own = iter(written(DefendedModel(target, None), examples, room) if examples else ())
    for chat in chats:
        yield chat if chat.answer is not None else chat.model_copy(update={"answer": next(own)})


def _add(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    try:
        with file.open("a", encoding="utf-8") as opened:
            opened.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}; repeated, the command goes on there"
        ) from None


def _whole_groups(file: Path, size: int) -> int:
    """Groups of documents that the file holds; what was cut off in the middle is removed."""
    if not file.exists():
        return 0
    with file.open("rb+") as lines:
        ends = [0]
        for line in lines:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        groups = (len(ends) - 1) // size
        lines.truncate(ends[groups * size])
        os.fsync(lines.fileno())
    return groups
