"""`prefill`: the answer's first words are written for the model, which then goes on by itself.

Prefilling attacks (arXiv 2404.02151, section on prefilling): models that would refuse go on with
an answer whose beginning already complies. What is judged is what the model adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from saebench_recovery.interfaces import Attack, PluginConfig
from saebench_recovery.perturbations.answer_beginning import AnswerBeginning, Beginning
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.registry import register_attack


@register_attack("prefill")
class Prefill(Attack):
    """Tries beginnings until the model goes on with the behaviour, the shortest first.

    The task's own list of beginnings, and the first tokens of the answer that is asked for.
    """

    space = "beginning"

    class Config(PluginConfig):
        length: int = Field(default=8, ge=1, le=512, description="tokens of a beginning, at most")
        own: tuple[int, ...] = Field(
            default=(1, 2, 4, 8), description="how many tokens of the wanted answer to try"
        )

    config: Config

    @property
    def length(self) -> int:
        return self.config.length

    def search(self, problem: Problem) -> Beginning:
        tries = self._beginnings(problem)
        chosen: list[Sequence[int]] = [()] * problem.size
        left = torch.arange(problem.size, device=problem.budget_N.device)
        for k in range(max(map(len, tries), default=0)):
            if not left.numel():
                break
            part = problem.rows(left)
            ids = [tries[n][min(k, len(tries[n]) - 1)] for n in left.tolist()]
            shown_N = part.behaviour(AnswerBeginning.of(part).beginning(ids))
            for n, tokens, shown in zip(left.tolist(), ids, shown_N.tolist(), strict=True):
                if shown or k == 0:
                    chosen[n] = tokens
            left = left[~shown_N]
        return AnswerBeginning.of(problem).beginning(chosen)

    def _beginnings(self, problem: Problem) -> list[list[tuple[int, ...]]]:
        """What to try for each row, the shortest first."""
        stock = AnswerBeginning.of(problem).stock
        counts = [count for count in self.config.own if count <= self.config.length]
        return [
            sorted(
                {*stock, *(e.candidates[0][:count] for count in counts)}, key=lambda b: (len(b), b)
            )
            for e in problem.examples
        ]
