"""What spaces of weight changes share: one change serves all prompts, under the active defense."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import forward
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Judge
from saebench_recovery.model.weights import matrices
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.space import Posing, Reach, Space
from saebench_recovery.perturbations.suffix import EMBEDDED
from saebench_recovery.perturbations.suffix_tokens import whole_prompts
from saebench_recovery.perturbations.windows import lay_out


@dataclass(frozen=True)
class Spent:
    """What a change has cost: steps of training, tokens read in them, FLOPs; none for rounding."""

    steps: int = 0
    tokens: int = 0
    flops: float = 0.0


class ChangedWeights(Perturbation):
    """Other weights of the model; the prompts and the residual stream are left as they are."""

    def applied(self, examples: Sequence[Example]) -> tuple[Sequence[Example], None]:
        return examples, None

    @abstractmethod
    def stages(self) -> Sequence[tuple[Spent, Self]]:
        """The change as it was on the way, each with its cost; the last one is what is scored."""


@dataclass(frozen=True)
class WeightSpace(Space):
    """Changes of the matrices in the blocks, `shapes`, by the names of their weights.

    A prompt has no change of its own: what asks for the right answers and what asks for the wrong
    ones have one each. `side_N` tells the two apart without saying which is which.
    """

    has_norm: ClassVar[bool] = False
    limited: ClassVar[bool] = False

    positions_NP: Tensor
    side_N: Tensor
    active: DefendedModel
    task: Judge
    lessons: tuple[tuple[Example, ...], ...]
    shapes: Mapping[str, tuple[int, ...]]
    seed: int

    @classmethod
    def pose(cls, reach: Reach, posing: Posing) -> Problem:
        """The problem of an attack that changes weights.

        Raises:
            UserError: the model has no weights that can be changed.
        """
        model = posing.active.target.model
        shapes = {name: tuple(model.get_parameter(name).shape) for name in matrices(model)}
        readout_E1 = torch.tensor([[len(group[0].prompt) - 1] for group in posing.groups])
        windows = lay_out(posing, readout_E1, [EMBEDDED])
        V, turned = windows.variants, posing.seed % 2  # which side is which is not said
        row_N = torch.arange(len(windows.positions_NP), device=windows.positions_NP.device)
        side_N = (row_N % V >= (V + 1) // 2).long() ^ turned
        lessons = posing.lessons[::-1] if turned else posing.lessons
        return windows.problem(
            cls(
                windows.positions_NP,
                side_N,
                posing.active,
                posing.task,
                lessons,
                shapes,
                posing.seed,
            )
        )

    def view(
        self, engine: Engine, perturbation: Perturbation
    ) -> tuple[Engine, ResidualDelta | None]:
        return whole_prompts(engine, engine.plain), None

    def rows(self, index: Tensor) -> Self:
        return replace(self, positions_NP=self.positions_NP[index], side_N=self.side_N[index])

    def check_sides(self, changes: Sequence[object]) -> None:
        """Refuse a change for some prompts alone.

        Raises:
            ValueError: the rows of one side have several.
        """
        if len(changes) != self.size:
            raise ValueError(f"{len(changes)} changes of weights for {self.size} rows")
        pairs = set(zip(self.side_N.tolist(), changes, strict=True))
        if len(pairs) > len(set(self.side_N.tolist())):
            raise ValueError("one change of weights has to serve all prompts, and here are more")

    def loss(self, active: DefendedModel, lessons: Sequence[Example]) -> tuple[Tensor, int]:
        """What training lowers, under the active defense, and how many tokens were read for it.

        Minus the log-likelihood of the first candidate, per token, over the whole vocabulary; of a
        task that pools, the logistic loss of its margin.
        """
        pool = self.task.pool
        if pool is None:
            lessons = [example.with_candidates(example.candidates[0]) for example in lessons]
        batch = active.target.batch(lessons)
        output = forward(
            active.target, batch, active.edits(batch), pool=pool, distribution=pool is None
        )
        tokens = int(batch.mask_RQ.sum())
        if output.logprobs_EV is None:
            return softplus(-self.task.objective(output)).mean(), tokens
        first_E = output.logprobs_EV.gather(1, batch.candidate_EC[:, :1])[:, 0]
        one_E = torch.tensor(batch.one_token, device=first_E.device)
        return -torch.where(one_E, first_E, output.scores_EC[:, 0]).mean(), tokens
