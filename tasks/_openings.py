"""Openings of answers, as tokens: the wrong one of each, and where refusals begin otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Example
from saebench_recovery.model.examples import shared_start


def unrelated(
    answers: Sequence[tuple[int, ...]], complying: Sequence[bool], own: int
) -> tuple[int, ...] | None:
    """An answer to another request, from its first token that is not the own answer's there.

    If possible one that complies, and then one that begins otherwise. What both begin with tells
    a wrong answer from the right one no more than the prompt does.
    """
    mine, order = answers[own], [*range(own + 1, len(answers)), *range(own)]
    order.sort(key=lambda i: (not complying[i], answers[i][:1] == mine[:1]))
    rests = (answers[i][shared_start(mine, answers[i]) :] for i in order)
    return next((rest for rest in rests if rest), None)


def first_tokens(examples: Sequence[Example]) -> list[Example]:
    """The examples with only the first token of each answer, where refusals begin otherwise.

    Raises:
        UserError: they never do.
    """
    firsts = [[candidate[0] for candidate in e.candidates] for e in examples]
    found = [
        e.with_candidates(*[(token,) for token in dict.fromkeys(first)])
        for e, first in zip(examples, firsts, strict=True)
        if first[0] not in first[1:]
    ]
    if not found:
        raise UserError("the model's answers all begin as refusals do: no latent can be scored")
    return found
