"""A space: a kind of perturbation, and which of that kind a problem's examples admit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Generator, Tensor

from saebench_recovery.base.plain_tensors import is_plain
from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.examples import Example
from saebench_recovery.model.meter import Meter
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Intervention, Judge
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.schema import Constraint
from saebench_recovery.spec import BudgetUnit


class Reach(Protocol):
    """Where an attack acts; see `interfaces.Attack`."""

    @property
    def constrained(self) -> bool: ...

    @property
    def length(self) -> int: ...

    # What plugins are handed is their own interface's, which stands above this room.
    def sites(self, defense: Any) -> list[Site]: ...

    def positions(self, task: Any, example: Example) -> tuple[int, ...]: ...


Shape = TypeVar("Shape", bound=Perturbation)
Lessons = tuple[tuple[Example, ...], tuple[Example, ...]]
"""Selection examples to learn the behaviour from, and the same ones with wrong answers."""


@dataclass(frozen=True)
class Posing:
    """What is asked of E prompts in V variants each (budgets; right and wrong answers).

    `groups[e]` holds prompt e's variants (same prompt, own candidates); `budget_EV` are their
    budgets at each position, in the unit that `unit` names (`spreads` per site, for that one);
    `goal_E` is the clean model's own margin. `rounded` lets ascents begin in bfloat16.
    """

    active: DefendedModel
    task: Judge
    groups: Sequence[Sequence[Example]]
    budget_EV: Tensor
    unit: BudgetUnit
    spreads: Mapping[Site, float]
    goal_E: Tensor
    seed: int
    meter: Meter
    drift_rule: DriftRule
    allowance: float | None = None
    lessons: Lessons = ((), ())
    rounded: bool = False


class Posed(Protocol):
    """A problem, as far as its space is concerned."""

    @property
    def space(self) -> Space: ...


class Draw(Protocol):
    """Random numbers: for a part of what is drawn, a generator for each row, or one for all."""

    def __call__(self, part: str) -> Iterable[Generator]: ...

    def alike(self, part: str) -> Generator: ...


class Space(ABC):
    """The perturbations of one kind that the N rows of a problem admit.

    `positions_NP` are the absolute positions of what is perturbed or put in, -1 beyond.
    """

    kind: ClassVar[str]
    has_norm: ClassVar[bool] = True  # budgets limit it, and a curve over budgets can be read
    limited: ClassVar[bool] = True  # a recovery is held to the limits on drift
    learns: ClassVar[bool] = False  # it is searched on `Posing.lessons`

    positions_NP: Tensor

    @classmethod
    def of(cls, problem: Posed) -> Self:
        """The space of a problem.

        Raises:
            TypeError: the problem is posed in another one.
        """
        if not isinstance(problem.space, cls):
            raise TypeError(f"a problem of {problem.space.kind!r}, not of {cls.kind!r}")
        return problem.space

    @classmethod
    def sites(cls, reach: Reach, defense: Intervention) -> list[Site]:
        """The hook points whose spread budgets are measured in; none where nothing has a norm."""
        return []

    @classmethod
    def inapplicable(cls, task: Judge) -> str | None:
        """Why such perturbations can do nothing to what the task reads; None where they can."""
        return None

    @property
    def size(self) -> int:
        return len(self.positions_NP)

    @abstractmethod
    def nothing(self) -> Perturbation:
        """The perturbation that changes nothing."""

    @abstractmethod
    def random(self, draw: Draw, budget_N: Tensor, like: Perturbation | None) -> Perturbation:
        """A random perturbation, at every position as large as the given one or the budget."""

    @abstractmethod
    def admit(self, perturbation: Perturbation, budget_N: Tensor) -> Perturbation:
        """Clip a perturbation to the budget; refuse one that is not of this space.

        Raises:
            TypeError, ValueError: another kind, other positions or shapes, not finite.
        """

    @abstractmethod
    def view(
        self, engine: Engine, perturbation: Perturbation
    ) -> tuple[Engine, ResidualDelta | None]:
        """The windows and the delta whose pass shows what a perturbation does."""

    @abstractmethod
    def rows(self, index: Tensor) -> Self:
        """The space of some rows."""

    def copied(self) -> Self:
        """The same with positions of its own: a search may write into what it is handed."""
        copied = copy(self)
        object.__setattr__(copied, "positions_NP", self.positions_NP.clone())
        return copied

    @property
    def promise(self) -> Constraint:
        """What keeps the defended latents in place by construction: nothing, unless it says so."""
        return Constraint(kind="none", rank=0)

    def zeros(self) -> ResidualDelta | None:
        """The zero delta at which the objective has a gradient; None where it has none."""
        return None

    def radius(self, budget_N: Tensor) -> dict[Site, Tensor]:
        """The largest norm [N, P] of a row at each site and position."""
        raise TypeError(f"a {self.kind} perturbation has no norm")

    def norm(self, perturbation: Perturbation) -> Tensor | None:
        """The largest norm [N] at any position, in the budget's unit; None without a norm."""
        return None

    def relative_norm(self, perturbation: Perturbation) -> Tensor | None:
        """The same, relative to the defended residual's norm there."""
        return None

    def project(self, delta: ResidualDelta, budget_N: Tensor) -> ResidualDelta:
        """Into what the space allows, then into the budget ball without leaving it."""
        raise TypeError(f"a {self.kind} perturbation is not projected")

    def shrink(self, perturbation: Perturbation, factor_N: Tensor) -> Perturbation | None:
        """Perturbations `factor` (0 to 1) times as long, still allowed; None without a norm."""
        return None


def checked_shape(perturbation: Perturbation, wanted: type[Shape]) -> Shape:
    """The perturbation, if it is of a space's own kind and made of plain tensors.

    Raises:
        TypeError: it is one, or holds a tensor or a mapping that may answer as it likes.
    """
    if not isinstance(perturbation, wanted):
        raise TypeError(
            f"the attack returned {type(perturbation).__name__}, not a {wanted.__name__}"
        )
    for held in vars(perturbation).values():
        for value in (held, *(held.values() if isinstance(held, Mapping) else ())):
            tensor, mapping = isinstance(value, Tensor), isinstance(value, Mapping)
            if (tensor and not is_plain(value)) or (mapping and type(value) is not dict):
                raise TypeError(f"the attack returned a {type(value).__name__} of its own")
    return perturbation


def all_finite(values: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in values)
