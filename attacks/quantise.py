"""`quantise`: does rounding the weights alone bring the behaviour back?

Quantisation can undo unlearning (arXiv 2410.16454): what was taken away by small changes of the
weights is lost in rounding. A defense on the residual stream meets other activations.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saebench_recovery.interfaces import Attack, PluginConfig
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.rounding import RoundedWeights, Rounding
from saebench_recovery.registry import register_attack


@register_attack("quantise")
class Quantise(Attack):
    """Rounds every matrix in the blocks; there is nothing to search."""

    space = "rounded"

    class Config(PluginConfig):
        bits: Literal[8, 4] = Field(default=4, description="of a weight")

    config: Config

    def search(self, problem: Problem) -> RoundedWeights:
        return Rounding.of(problem).to(self.config.bits)
