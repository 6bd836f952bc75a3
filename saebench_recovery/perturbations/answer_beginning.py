"""The space of written beginnings: the answer's first tokens are the attacker's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from saebench_recovery.model.examples import Example
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Judge
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.retokenise import Vocabulary, vocabulary
from saebench_recovery.perturbations.space import Draw, Posing, Reach, Space, checked_shape
from saebench_recovery.perturbations.suffix import EMBEDDED
from saebench_recovery.perturbations.suffix_tokens import whole_prompts
from saebench_recovery.perturbations.windows import lay_out


@dataclass(frozen=True)
class Beginning(Perturbation):
    """Tokens with which each answer begins: they stand behind the prompt's last one.

    `ids_EL` is int64, with -1 behind a shorter beginning; `at_E` is the prompt's length. What is
    judged is the text that the model writes after it, never the attacker's own words.
    """

    kind: ClassVar[str] = "beginning"

    ids_EL: Tensor
    at_E: Tensor

    def present_E(self) -> Tensor:
        return ~(self.ids_EL < 0).all(1)

    def rows(self, index: Tensor) -> Self:
        return replace(self, ids_EL=self.ids_EL[index], at_E=self.at_E[index])

    def applied(self, examples: Sequence[Example]) -> tuple[Sequence[Example], None]:
        pairs = zip(examples, self.ids_EL.tolist(), strict=True)
        return [
            e.with_inserted(len(e.prompt), [i for i in ids if i >= 0]) for e, ids in pairs
        ], None

    def inserted_at_E(self) -> Tensor:
        return self.at_E

    def tensors(self) -> dict[str, Tensor]:
        return {"beginning/ids": self.ids_EL.cpu(), "beginning/at": self.at_E.cpu()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["beginning/ids"], tensors["beginning/at"])


@dataclass(frozen=True)
class AnswerBeginning(Space):
    """Beginnings of at most `length` tokens, of tasks that generate.

    `stock` are beginnings that the task's data name; `positions_NP` is the readout, behind which
    they stand.
    """

    kind: ClassVar[str] = "beginning"
    has_norm: ClassVar[bool] = False

    positions_NP: Tensor
    plain: tuple[Example, ...]
    length: int
    words: Vocabulary
    stock: tuple[tuple[int, ...], ...]

    @classmethod
    def inapplicable(cls, task: Judge) -> str | None:
        if task.new_tokens:
            return None
        return (
            f"task {task.name!r} is not judged by a written answer, so none can be begun for it; "
            "use a task that generates, such as refusal"
        )

    @classmethod
    def pose(cls, reach: Reach, posing: Posing) -> Problem:
        """The problem of an attack that writes the answer's beginning."""
        task = posing.task
        readout_E1 = torch.tensor([[len(group[0].prompt) - 1] for group in posing.groups])
        windows = lay_out(posing, readout_E1, [EMBEDDED])
        words = vocabulary(posing.active.target)
        stock = tuple(ids[: reach.length] for ids in words.encode(list(task.beginnings())))
        plain = tuple(example for group in posing.groups for example in group)
        return windows.problem(cls(windows.positions_NP, plain, reach.length, words, stock))

    def beginning(self, ids: Sequence[Sequence[int]]) -> Beginning:
        """Beginnings of these tokens, one per row; none where there is no token."""
        ids_NL = torch.full((self.size, self.length), -1, device=self.positions_NP.device)
        for n, tokens in enumerate(ids):
            ids_NL[n, : len(tokens)] = torch.tensor(list(tokens), dtype=torch.long)
        return Beginning(ids_NL, self.positions_NP[:, 0] + 1)

    def nothing(self) -> Beginning:
        return self.beginning([()] * self.size)

    def random(self, draw: Draw, budget_N: Tensor, like: Perturbation | None) -> Beginning:
        """Random printing tokens, as many as there is place for."""
        allowed = self.words.allowed_V.nonzero()[:, 0].cpu()
        ids = [
            allowed[torch.randint(len(allowed), (self.length,), generator=g)].tolist()
            for g in draw("")
        ]
        return self.beginning(ids)

    def admit(self, perturbation: Perturbation, budget_N: Tensor) -> Beginning:
        """Refuse what is longer than allowed, or holds a special token: those are the model's."""
        perturbation = checked_shape(perturbation, Beginning)
        ids_NL = perturbation.ids_EL
        if len(ids_NL) != self.size or ids_NL.shape[1] > self.length:
            raise ValueError(
                f"beginnings {tuple(ids_NL.shape)}, but {self.size} of at most {self.length} tokens"
            )
        if not torch.equal(perturbation.at_E, self.positions_NP[:, 0] + 1):
            raise ValueError("the attack writes elsewhere than behind the prompts")
        special = torch.tensor(sorted(self.words.target.special), device=ids_NL.device)
        if torch.isin(ids_NL, special).any() or (ids_NL >= len(self.words.pieces)).any():
            raise ValueError("a beginning holds a special token or none of the vocabulary's")
        return perturbation

    def view(
        self, engine: Engine, perturbation: Perturbation
    ) -> tuple[Engine, ResidualDelta | None]:
        checked_shape(perturbation, Beginning)
        return whole_prompts(engine, perturbation.applied(self.plain)[0]), None

    def rows(self, index: Tensor) -> Self:
        plain = tuple(self.plain[i] for i in index.tolist())
        return replace(self, positions_NP=self.positions_NP[index], plain=plain)
