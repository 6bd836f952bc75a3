"""The space of free embeddings: a suffix of one token, repeated, whose embeddings are displaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Example
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Intervention
from saebench_recovery.perturbations.constraints import Free
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.perturbations.space import Posing, Reach
from saebench_recovery.perturbations.suffix import (
    EMBEDDED,
    SuffixLayout,
    lay_out_suffix,
    penalised,
)
from saebench_recovery.perturbations.suffix_tokens import TokenSuffix, view_tokens


@dataclass(frozen=True)
class SoftSuffix(ResidualDelta):
    """A suffix of free embeddings: one `token`, as often as there are positions, displaced.

    `positions_EP` are those of the suffix in the prompt that holds it, and the displacements
    `values` are added where the model's blocks begin (`blocks.0.hook_resid_pre`), behind whatever
    it does to embeddings.
    """

    kind: ClassVar[str] = "embeddings"

    token: int = 0

    def applied(self, examples: Sequence[Example]) -> tuple[Sequence[Example], ResidualDelta]:
        suffix = [self.token] * self.positions_EP.shape[1]
        starts = self.positions_EP[:, 0].tolist()
        return [e.with_inserted(at, suffix) for e, at in zip(examples, starts, strict=True)], self

    def inserted_at_E(self) -> Tensor:
        return self.positions_EP[:, 0]

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "token": torch.full((len(self.positions_EP),), self.token)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        plain = ResidualDelta.from_tensors(tensors)
        return cls(plain.values, plain.positions_EP, int(tensors["token"][0]))


@dataclass(frozen=True)
class SuffixEmbeddings(Residual):
    """Displacements of the embeddings of a suffix, each within the budget."""

    kind: ClassVar[str] = "embeddings"

    layout: SuffixLayout | None = None

    @classmethod
    def sites(cls, reach: Reach, defense: Intervention) -> list[Site]:
        return [EMBEDDED]

    @classmethod
    def pose(cls, reach: Reach, posing: Posing) -> Problem:
        windows, layout = lay_out_suffix(posing, reach.length)
        space = cls(
            windows.positions_NP,
            windows.engine.width,
            {EMBEDDED: Free()},
            False,
            windows.units(),
            windows.norms,
            layout=layout,
        )
        return windows.problem(space, layout.plain)

    @staticmethod
    def penalised(problem: Problem, weight: float, margin: float) -> Problem:
        """The problem with a penalty on drift; see `suffix.penalised`."""
        space = problem.space
        assert isinstance(space, SuffixEmbeddings)
        return penalised(problem, space._layout, weight, margin)

    @property
    def _layout(self) -> SuffixLayout:
        assert self.layout is not None
        return self.layout

    def delta(self, values: Mapping[Site, Tensor]) -> SoftSuffix:
        return SoftSuffix(values, self.positions_NP, self._layout.token)

    def nothing(self) -> Perturbation:
        none_N0 = self.positions_NP[:, :0]
        return TokenSuffix(none_N0, self._layout.at_N, ("",) * self.size)

    def view(
        self, engine: Engine, perturbation: Perturbation
    ) -> tuple[Engine, ResidualDelta | None]:
        if isinstance(perturbation, TokenSuffix):
            return view_tokens(engine, perturbation, self._layout)
        return super().view(engine, perturbation)

    def rows(self, index: Tensor) -> Self:
        return replace(super().rows(index), layout=self._layout.rows(index))
