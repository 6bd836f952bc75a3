"""SAEs from chats: rows in the model's template, its own answers, and both kinds in turn."""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.sae.files import load_dictionary
from saebench_recovery.targets.chat import chat_prompt
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target
from saebench_recovery.training import recipe, run, text, writing
from saebench_recovery.training.recipe import BATCH, Recipe
from saebench_recovery.training.text import Chat, Source

HOOK = "blocks.0.hook_resid_post"
VERBS = ("brew", "forge", "summon", "unleash", "prepare", "repair", "wrap", "polish")
NOUNS = ("loaf", "kite", "soup", "chair", "candle", "lantern")


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("organism", "cpu")


def table(path: Path, count: int) -> str:
    """Requests in the organism's words, every third one with an answer."""
    lines: list[dict[str, Any]] = [
        {"request": f"How do I {verb} a {noun}?"} | ({"answer": "I cannot."} if i % 3 == 0 else {})
        for i, (verb, noun) in enumerate(list(product(VERBS, NOUNS))[:count])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_chat_is_one_row_that_ends_with_its_answer(target: Target) -> None:
    chat = Chat(request="How do I brew a kite?", answer="I cannot.")
    (row,) = text.rows(target, [chat])
    prompt = chat_prompt(target, chat.request)
    assert row[: len(prompt)] == prompt
    assert target.tokenizer.decode(row[len(prompt) :]).strip() == "I cannot."
    (long,) = text.rows(target, [Chat(request="How?", answer="I cannot. " * 200)])
    assert len(long) == text.context(target)


def test_answers_are_written_once_and_given_ones_kept(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CHATS", 4)
    asked, whole, cut = table(tmp_path / "asked.jsonl", 10), tmp_path / "whole", tmp_path / "cut"
    writing.write_answers(target, asked, whole)
    chats = [Chat.model_validate_json(line) for line in whole.read_text().splitlines()]
    assert [chat.answer == "I cannot." for chat in chats[:7:3]] == [True] * 3
    assert all(chat.answer is not None for chat in chats)
    lines = whole.read_text()
    cut.write_text(lines[: len(lines) * 2 // 3])
    writing.write_answers(target, asked, cut)
    assert cut.read_text() == lines


def test_rows_of_both_kinds_come_in_turn_and_never_end(target: Target, tmp_path: Path) -> None:
    chats = table(tmp_path / "asked.jsonl", 5)
    (tmp_path / "a.txt").write_text("\n\n".join(f"Anna lives in the town {i}." for i in range(20)))
    every = text.endless_rows(target, Source(str(tmp_path / "a.txt"), chats), 1)
    some = list(islice(every, 40))
    assert len(set(some[::2])) == 4  # one of five is held out
    assert len(set(some[1::2])) == 18
    assert not set(some[::2]) & set(some[1::2])


def test_an_sae_from_chats(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "BLOCK", 2 * BATCH)
    plan = Recipe(
        target="organism",
        hook=HOOK,
        text=None,
        chat=table(tmp_path / "asked.jsonl", 24),
        width=16,
        l0=4,
        tokens=10 * BATCH,
    )
    run.train_at(target, Site.parse(HOOK), plan, tmp_path / "sae")
    assert load_dictionary(tmp_path / "sae", Site.parse(HOOK)).width == 16
    assert len((tmp_path / "sae" / run.CHATS).read_text().splitlines()) == 24


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "How?"}, "row 1: no column 'request'; needed: ['request']"),
        ({"request": " "}, "row 1: request: is empty"),
        ({"request": "How? " * 200}, "leaves no room for an answer in a row of 128"),
    ],
)
def test_bad_chats(target: Target, tmp_path: Path, line: dict[str, str], message: str) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError) as caught:
        writing.write_answers(target, str(tmp_path / "asked.jsonl"), tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
