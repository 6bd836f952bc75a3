"""Neutral text and retained facts: what no task removes, so that harm done to it is a side effect.

The embedded organism knows only its invented world; every model of real text is asked plain
general knowledge of our own writing (`tasks/data/general.json`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from saebench_recovery.targets.organism import world

Knowledge = Literal["organism", "general"]
Fact = tuple[str, str, tuple[str, ...]]
"""A prompt, its answer and wrong answers of the same kind, each with its leading space."""

NEUTRAL_TEXTS = 64  # half of them are scored, see `phase`
FOILS = 3


def neutral_texts(whose: Knowledge) -> list[str]:
    """Text that belongs to no behaviour."""
    if whose == "organism":
        return list(islice(world.neutral_texts("evaluation"), NEUTRAL_TEXTS))
    return list(world.load("general")["neutral"])


def facts(whose: Knowledge) -> list[Fact]:
    """Questions with one right answer among those offered."""
    return list(_towns() if whose == "organism" else _general())


def _towns() -> Iterator[Fact]:
    """The domain that no task of the organism tries to remove."""
    for fact in world.facts("towns"):
        others = (f" {v}" for v in world.relation_table(fact)["values"] if v != fact.value)
        yield world.question(fact), f" {fact.value}", tuple(others)


def _general() -> Iterator[Fact]:
    """Each fact beside the answers of the next ones of its relation."""
    for relation in world.load("general")["relations"]:
        answers = list(relation["facts"].values())
        for i, (subject, answer) in enumerate(relation["facts"].items()):
            others = (answers[(i + 1 + j) % len(answers)] for j in range(FOILS))
            yield relation["prompt"].format(subject), f" {answer}", tuple(f" {o}" for o in others)
