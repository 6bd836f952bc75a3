"""An attack: a search for perturbations that bring the behaviour back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, final

from saebench_recovery.base.plugin import Plugin, PluginError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces.defense import Defense
from saebench_recovery.interfaces.task import Task
from saebench_recovery.model.examples import Example
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.perturbations.blame import looked_at
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.schema import Constraint


class Attack(Plugin, ABC, kind="attack"):
    """A search for a perturbation that brings the behaviour back.

    `space` is the kind of perturbation that it searches (`perturbations.kinds`): rows added to
    the residual stream, tokens or embeddings of a suffix, the beginning of the answer.

    `constrained` says that it stays in the problem's constraint sets by construction; the
    scoring holds it to that and flags a row that moved the defended latents all the same.
    """

    constrained: bool = False
    space: ClassVar[str] = "residual"

    def suite(self) -> Sequence[Attack]:
        """The attacks that it stands for, each tried on what those before left unbroken."""
        return [self]

    @property
    def length(self) -> int:
        """Tokens that it puts into the prompt."""
        return 0

    def promise(self, problem: Problem) -> Constraint:
        """How the defended latents are kept in place in this problem, by construction."""
        return problem.space.promise

    @property
    def learns(self) -> bool:
        """Whether half of the valid flips go to `fit` and only the others are scored."""
        return False

    @property
    def restores(self) -> bool:
        """Whether it aims at the clean model's whole output distribution, not the margin."""
        return False

    @property
    def abreast(self) -> int:
        """Copies of a row that one step of the search holds at most, such as of several starts."""
        return 1

    @property
    def shortens(self) -> bool:
        """Whether `shortest` looks for the smallest norm, in place of a search at every budget."""
        return False

    def sites(self, defense: Defense) -> list[Site]:
        """Perturbed hook points, in the order of the forward pass: the first defended one."""
        return [min(defense.latents)]

    def positions(self, task: Task, example: Example) -> tuple[int, ...]:
        """Absolute token positions that may be perturbed in an example: the task's own choice."""
        return task.positions(example)

    def fit(self, problem: Problem) -> None:
        """Learn from valid flips that will not be scored; called only if `learns`."""
        raise NotImplementedError(f"attack {self.name!r} learns nothing")

    @abstractmethod
    def search(self, problem: Problem) -> Perturbation:
        """Look for a perturbation inside the problem's budget, one per example."""

    def shortest(self, problem: Problem) -> ResidualDelta:
        """The smallest perturbation of each example that it finds; called only if `shortens`."""
        raise NotImplementedError(f"attack {self.name!r} searches at given budgets")

    @final
    def run(self, problem: Problem, *, shortest: bool = False) -> Perturbation:
        """Search, then clip to the budget: an attack can neither overspend nor score itself.

        Whether the behaviour came back is decided later, by a replay of what this returns
        under the active defense. The search works on copies of what its result is held to.
        """
        search = self.shortest if shortest else self.search
        try:
            return self._admitted(search, problem)
        except PluginError as error:
            if error.kind == self.kind:
                self._admitted(search, looked_at(problem))  # raises of whoever showed it NaN
            raise

    def _admitted(
        self, search: Callable[[Problem], Perturbation], problem: Problem
    ) -> Perturbation:
        perturbation = search(problem.copied())
        try:
            return problem.admit(perturbation)
        except (TypeError, ValueError) as error:
            raise PluginError(
                self.title, f"{search.__name__}:", str(error), fault="wrong-perturbation"
            ) from error
