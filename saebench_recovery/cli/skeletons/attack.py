"""An attack: gradient ascent on the behaviour, inside the null space of the defended latents.

saebench check --plugin my_attack.py --attack my-attack --task ioi
saebench run --plugin my_attack.py --attack my-attack --task ioi --limit 64
"""

from pydantic import Field
from torch import Tensor

from saebench_recovery.interfaces import Attack, PluginConfig, Problem, ResidualDelta, Site
from saebench_recovery.registry import register_attack


@register_attack("my-attack")
class MyAttack(Attack):
    """One line that `saebench list attacks` shows."""

    # `problem.project` then projects into the null space; the scoring holds the attack to it.
    constrained = True

    class Config(PluginConfig):
        # Set on the command line with -A steps=50; an unknown key or a bad value is refused.
        steps: int = Field(default=30, ge=1, le=10_000, description="of the ascent")
        length: float = Field(
            default=0.1, gt=0, le=10, description="of a step, relative to the budget"
        )

    config: Config

    def search(self, problem: Problem) -> ResidualDelta:
        """A delta for each of the problem's rows, [rows, positions, width] at each site.

        What comes back is clipped to the budget and replayed under the active defense: only
        that replay counts.
        """
        delta = problem.zeros()
        for _ in range(self.config.steps):
            _, grads = problem.gradient(delta)  # of each row's margin, under the defense
            delta = self._moved(problem, delta, grads)
        return delta

    def _moved(
        self, problem: Problem, delta: ResidualDelta, grads: dict[Site, Tensor]
    ) -> ResidualDelta:
        length_N = self.config.length * problem.pooled_radius_N
        moved = {}
        for site, grad_NPD in grads.items():
            norm_N = grad_NPD.flatten(1).norm(dim=1).clamp_min(1e-30)
            moved[site] = delta.values[site] + (length_N / norm_N)[:, None, None] * grad_NPD
        # Into what the constraint allows, and then into the budget.
        return ResidualDelta(problem.project(moved), delta.positions_EP)
