"""Texts that say the same are found however they are dressed; a shared template is not enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saebench_recovery.scoring.check.near_duplicates import groups, normalised

NAMES = ("Alice", "Boris", "Chandra", "Dmitri", "Eulalia", "Fernando", "Guinevere", "Hyacinth")
STORY = (
    "When the ferry to the northern islands was late again, the captain told a long story "
    "about a lighthouse, a broken radio and the seven goats that kept the keeper company"
)


def same(*texts: str) -> bool:
    return len(set(groups([normalised(text) for text in texts]))) == 1


def test_dress_does_not_count() -> None:
    assert normalised("  Café,\nCAFE! ") == normalised("cafe cafe")
    assert same(STORY, STORY.upper() + "...", STORY.replace(" ", "\n  "))


def test_one_word_more_or_less_does_not_count() -> None:
    assert same(STORY, STORY.replace("broken radio", "broken old radio"))
    assert same(STORY, "Well. " + STORY.replace("seven", "eight"))


def test_a_template_is_not_what_is_put_into_it() -> None:
    texts = [
        normalised(f"Yesterday {a} gave a present to {b}") for a in NAMES for b in NAMES if a < b
    ]
    assert len(set(groups(texts))) == len(texts)


@given(st.lists(st.text(max_size=40), max_size=12))
def test_any_texts_have_groups_and_equal_ones_the_same(texts: list[str]) -> None:
    plain = [normalised(text) for text in texts]
    found = groups([*plain, *plain])
    assert found[: len(plain)] == found[len(plain) :]
