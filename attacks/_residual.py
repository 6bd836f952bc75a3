"""What the built-in attacks on the residual stream have in common: where they may act."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saebench_recovery.base.sites import Site, SiteName
from saebench_recovery.interfaces import Attack, Defense, Example, PluginConfig, Task
from saebench_recovery.perturbations.confirmed import confirmed
from saebench_recovery.perturbations.problem import Problem

Through = Literal["defense", "identity", "confirmed"]
THROUGH = (
    "how gradients pass the defense: by its own backward pass; unchanged (straight-through, "
    "arXiv 1802.00420); or by its own where differences confirm it, and else by those"
)


def differentiated(problem: Problem, through: Through) -> Problem:
    """The problem whose gradients a search follows."""
    match through:
        case "defense":
            return problem
        case "identity":
            return problem.passing("identity")
        case "confirmed":
            return confirmed(problem)


class ResidualAttack(Attack):
    """An attack that adds rows to the residual stream at sites and positions of one's choice."""

    class Config(PluginConfig):
        sites: tuple[SiteName, ...] | None = Field(
            default=None,
            min_length=1,
            description="perturbed hook points; default: the first defended one",
        )
        positions: Literal["task", "readout", "all"] = Field(
            default="task",
            description="perturbed tokens: the task's choice, the last of the prompt, or all its",
        )

    config: Config

    def sites(self, defense: Defense) -> list[Site]:
        if self.config.sites is None:
            return super().sites(defense)
        return sorted(Site.parse(name) for name in self.config.sites)

    def positions(self, task: Task, example: Example) -> tuple[int, ...]:
        match self.config.positions:
            case "task":
                return super().positions(task, example)
            case "readout":
                return (len(example.prompt) - 1,)
            case "all":
                return tuple(range(1, len(example.prompt)))
