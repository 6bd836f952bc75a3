"""The space of low-rank weight changes: what LoRA can learn, merged into the weights.

Low-rank adaptation (arXiv 2106.09685): a matrix gets the product of two thin ones added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from saebench_recovery.model.perturbation import SHARED, Perturbation
from saebench_recovery.model.weights import WeightChange
from saebench_recovery.perturbations.space import Draw, all_finite, checked_shape
from saebench_recovery.perturbations.weights import ChangedWeights, Spent, WeightSpace

RANK = 16  # at most, of what is added to a matrix
RANDOM_NORM = 0.01  # of a random change that has no other to go by, relative to each matrix's


@dataclass(frozen=True, eq=False)
class Factors:
    """K changes: `up[name]` [K, rows, rank] times `down[name]` [K, rank, columns], float32."""

    up: Mapping[str, Tensor] = field(default_factory=dict)
    down: Mapping[str, Tensor] = field(default_factory=dict)
    spent: tuple[Spent, ...] = ()

    def chosen(self, index_K: Tensor) -> Factors:
        """Some of the changes."""
        return Factors(
            {name: factor[index_K] for name, factor in self.up.items()},
            {name: factor[index_K] for name, factor in self.down.items()},
            tuple(self.spent[k] for k in index_K.tolist()),
        )

    def joined(self, other: Factors) -> Factors:
        """The changes of both, of the same matrices and rank."""
        if not other.spent:
            return self
        return Factors(
            {name: torch.cat([factor, other.up[name]]) for name, factor in self.up.items()},
            {name: torch.cat([factor, other.down[name]]) for name, factor in self.down.items()},
            (*self.spent, *other.spent),
        )


@dataclass(frozen=True)
class Added(WeightChange):
    """One of the changes; -1 is none."""

    factors: Factors
    k: int

    def of(self, name: str, weight: Tensor) -> Tensor | None:
        if self.k < 0 or name not in self.factors.up:
            return None
        up, down = (
            named[name][self.k].to(weight.device) for named in (self.factors.up, self.factors.down)
        )
        return (weight.detach().float() + up @ down).to(weight.dtype)


@dataclass(frozen=True)
class LowRankChange(ChangedWeights):
    """For each example the changes [E, K] on the way by their places in `factors`, the last scored.

    All have the same number of stages; -1 is no change.
    """

    kind: ClassVar[str] = "low-rank"

    factors: Factors
    stage_EK: Tensor

    def present_E(self) -> Tensor:
        return self.stage_EK[:, -1] >= 0

    def rows(self, index: Tensor) -> Self:
        return replace(self, stage_EK=self.stage_EK[index.to(self.stage_EK.device)])

    def weights_of(self) -> Sequence[WeightChange]:
        return [Added(self.factors, k) for k in self.stage_EK[:, -1].tolist()]

    def stages(self) -> Sequence[tuple[Spent, Self]]:
        found = []
        for place in range(self.stage_EK.shape[1]):
            stage_E1 = self.stage_EK[:, place : place + 1]
            known = [self.factors.spent[k] for k in stage_E1[:, 0].tolist() if k >= 0]
            found.append((known[0] if known else Spent(), replace(self, stage_EK=stage_E1)))
        return found

    def tensors(self) -> dict[str, Tensor]:
        used_K, place_EK = torch.unique(self.stage_EK, return_inverse=True)
        missing = int((used_K < 0).sum())
        own = self.factors.chosen(used_K[missing:])
        spent = torch.tensor(
            [[s.steps, s.tokens, s.flops] for s in own.spent], dtype=torch.float64
        ).reshape(-1, 3)
        return {
            "stage": place_EK.cpu() - missing,
            f"{SHARED}spent": spent,
            **{f"{SHARED}up/{name}": factor.cpu() for name, factor in own.up.items()},
            **{f"{SHARED}down/{name}": factor.cpu() for name, factor in own.down.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        up, down = (
            {
                name.removeprefix(f"{SHARED}{side}/"): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{SHARED}{side}/")
            }
            for side in ("up", "down")
        )
        spent = tuple(
            Spent(int(steps), int(tokens), flops)
            for steps, tokens, flops in tensors[f"{SHARED}spent"].tolist()
        )
        stage_EK = tensors["stage"]
        factors = (*up.values(), *down.values())
        sizes = {len(factor) for factor in factors} | {len(spent)}
        plain = all(factor.dtype == torch.float32 and factor.ndim == 3 for factor in factors)
        plain = plain and stage_EK.dtype == torch.int64 and stage_EK.ndim == 2
        if len(sizes) > 1 or up.keys() != down.keys() or not plain:
            raise ValueError("the factors of its weights do not belong together")
        if stage_EK.numel() and not -1 <= int(stage_EK.min()) <= int(stage_EK.max()) < len(spent):
            raise ValueError("a stage that there is not")
        return cls(Factors(up, down, spent), stage_EK)


@dataclass(frozen=True)
class LowRank(WeightSpace):
    """Changes of rank `RANK` at most to each matrix; their rank is all that limits them."""

    kind: ClassVar[str] = "low-rank"
    learns: ClassVar[bool] = True

    def change(self, of_sides: Sequence[Factors]) -> LowRankChange:
        """Each row with its side's changes, in their order."""
        first, second = of_sides
        stage_KK = torch.tensor(
            [range(len(first.spent)), range(len(first.spent), len(first.spent + second.spent))]
        )
        return LowRankChange(first.joined(second), stage_KK[self.side_N.cpu()])

    def nothing(self) -> LowRankChange:
        return LowRankChange(Factors(), torch.full((self.size, 1), -1))

    def random(self, draw: Draw, budget_N: Tensor, like: Perturbation | None) -> LowRankChange:
        """A random change of the given one's rank and norms, the same for all rows of a side."""
        if like is None:
            like = self._full()
        assert isinstance(like, LowRankChange)
        last_K, place_E = torch.unique(like.stage_EK[:, -1], return_inverse=True)
        missing = int((last_K < 0).sum())
        known, drawn = like.factors.chosen(last_K[missing:]), draw.alike("")
        up, down = {}, {}
        for name in known.up:
            wanted_K = (known.up[name] @ known.down[name]).flatten(1).norm(dim=1)
            # One of each for all: what differs between sides is the norm alone.
            one, other = (
                torch.randn(factor.shape[1:], generator=drawn)
                for factor in (known.up[name].cpu(), known.down[name].cpu())
            )
            share_K = wanted_K.cpu() / (one @ other).norm()
            up[name], down[name] = share_K[:, None, None] * one, other.expand(len(wanted_K), -1, -1)
        factors = Factors(up, down, (Spent(),) * len(known.spent))
        return LowRankChange(factors, place_E[:, None].cpu() - missing)

    def _full(self) -> LowRankChange:
        """One for all, of a certain norm in every matrix."""
        up, down = {}, {}
        for name, (rows, columns) in self.shapes.items():
            norm = self.active.target.model.get_parameter(name).float().norm().cpu()
            up[name] = torch.ones(1, rows, 1) * RANDOM_NORM * norm / (rows * columns) ** 0.5
            down[name] = torch.ones(1, 1, columns)
        return LowRankChange(
            Factors(up, down, (Spent(),)), torch.zeros(self.size, 1, dtype=torch.long)
        )

    def admit(self, perturbation: Perturbation, budget_N: Tensor) -> LowRankChange:
        """Refuse what is of a higher rank, of other matrices, or of some prompts alone."""
        perturbation = checked_shape(perturbation, LowRankChange)
        factors, shapes = perturbation.factors, self.shapes
        self.check_sides([tuple(row) for row in perturbation.stage_EK.tolist()])
        if perturbation.stage_EK.shape[1] < 1 or perturbation.stage_EK.max() >= len(factors.spent):
            raise ValueError("it names a change that it does not hold")
        if not all_finite([*factors.up.values(), *factors.down.values()]):
            raise ValueError("the change of weights is not finite")
        if factors.up.keys() != factors.down.keys():
            raise ValueError("the factors of its weights do not belong together")
        for name, up in factors.up.items():
            down = factors.down[name]
            if name not in shapes or (up.shape[1], down.shape[2]) != shapes[name]:
                raise ValueError(f"the model has no matrix {name!r} of that shape to change")
            if up.dtype != torch.float32 or down.dtype != torch.float32:
                raise TypeError(f"factors are float32, not {up.dtype} (of {name})")
            if up.shape[2] != down.shape[1] or up.shape[2] > RANK:
                raise ValueError(f"a change of rank {up.shape[2]}, of at most {RANK}")
        return perturbation
