"""Indirect objects: names are found, not assumed, and the answer is never the subject."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from saebench_recovery.tasks.ioi import IndirectObject

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Split
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.organism import world
from saebench_recovery.targets.target import Target
from tests.tiny import tiny_target


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("organism", "cpu")


def task(**settings: Any) -> IndirectObject:
    made = registry.create("task", "ioi", {"prompts": 40, "selection_prompts": 20, **settings})
    assert isinstance(made, IndirectObject)
    return made


@pytest.mark.parametrize("variant", ["mixed", "published"])
def test_the_answer_is_the_name_that_is_not_repeated(target: Target, variant: str) -> None:
    decode = target.tokenizer.decode
    examples = task(variant=variant).examples(target, "evaluation")
    assert len(examples) == 40
    for example in examples:
        prompt = decode(example.prompt)
        names = [decode(list(candidate)).strip() for candidate in example.candidates]
        right, repeated, *strangers = names
        assert example.wrong is not None
        assert prompt.count(right) == 1
        assert prompt.count(repeated) == 2
        assert not [name for name in strangers if name in prompt]
        assert decode(list(example.wrong)).strip() in strangers
        if variant == "published":  # BABA: the subject is named first
            assert prompt.index(repeated) < prompt.index(right)


def test_splits_share_no_pair_of_names(target: Target) -> None:
    made = {s: task().examples(target, s) for s in get_args(Split) if s != "retain"}
    pairs = {split: {e.cluster for e in examples} for split, examples in made.items()}
    assert not pairs["selection"] & pairs["evaluation"]


def test_only_names_that_are_single_tokens_are_used(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {f" {name}" for i, name in enumerate(world.load("ioi")["names"]) if i % 4}
    single = target.single_token
    monkeypatch.setattr(
        Target, "single_token", lambda _, text: single(text) if text in whole else None
    )
    for example in task().examples(target, "evaluation"):
        for ids in (*example.candidates, example.wrong):
            assert target.tokenizer.decode(list(ids or ())) in whole


def test_a_tokenizer_that_splits_every_name_is_one_clear_line() -> None:
    splitting = tiny_target("gpt2")  # a token per character
    with pytest.raises(UserError, match=r"only 0 of 40 .* have names that are single tokens") as e:
        task().examples(splitting, "evaluation")
    assert "\n" not in str(e.value)
