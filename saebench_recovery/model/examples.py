"""What passes between the model and a task: examples and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile

from torch import Tensor

from saebench_recovery.base.errors import UserError


@dataclass(frozen=True)
class Example:
    """One item of a task.

    `prompt` holds the token ids, with exactly one BOS where the model uses one. `candidates`
    are the answers to compare, each a tuple of token ids; the first one *is* the behaviour.
    `wrong` is an answer that neither the clean nor the defended model gives, if the task knows
    one. `cluster` names the source item: intervals treat examples of one cluster as dependent.

    Raises:
        UserError: an answer has no token, so that nothing could be read of it.
    """

    id: str
    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    wrong: tuple[int, ...] | None = None
    cluster: str = ""

    def __post_init__(self) -> None:
        answers = self.candidates if self.wrong is None else (*self.candidates, self.wrong)
        if not all(map(len, answers)):  # a list of none, too
            raise UserError(f"example {self.id!r} has an answer without a token: none is empty")

    @cached_property
    def longest_answer(self) -> int:
        """Tokens of the longest candidate."""
        return max(map(len, self.candidates), default=0)

    def with_candidates(self, *candidates: tuple[int, ...]) -> Example:
        """The same with other answers to compare, the behaviour first."""
        return replace(self, candidates=candidates)

    def with_inserted(self, at: int, ids: Iterable[int]) -> Example:
        """The same with more tokens before the prompt's token `at`, or behind its last one."""
        return replace(self, prompt=(*self.prompt[:at], *ids, *self.prompt[at:]))


def shared_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class Output:
    """What one pass of the model shows a task, one entry per example, in float32.

    `scores_EC`: the logit of each candidate at the readout (single-token candidates) or its
    mean log-probability (longer ones); -inf where an example has fewer candidates.
    `logprobs_EV`: next-token log-probabilities at the readout, where they were asked for.
    `pooled_ED`: mean residual over content tokens, for a task that pools (scores are then
    empty). `texts`: greedy continuations, for a task that generates.
    """

    examples: tuple[Example, ...]
    scores_EC: Tensor
    logprobs_EV: Tensor | None = None
    pooled_ED: Tensor | None = None
    texts: tuple[str, ...] | None = None


Run = Callable[[Sequence[Example]], Iterable[Output]]
"""Runs examples and yields their outputs, some at a time and in their order."""
