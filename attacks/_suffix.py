"""What the built-in suffix attacks have in common: length of the suffix, and restarts."""

from __future__ import annotations

from pydantic import Field

from saebench_recovery.interfaces import Attack, PluginConfig
from saebench_recovery.perturbations.problem import Problem


class SuffixAttack(Attack):
    """An attack that puts a suffix of fixed length into the prompt."""

    class Config(PluginConfig):
        length: int = Field(default=8, ge=1, le=512, description="tokens of the suffix")
        starts: int = Field(
            default=1,
            ge=1,
            le=100,
            description="from an ordinary token, repeated, and for what is not done from random "
            "suffixes; an allowance of FLOPs is spent on the first",
        )
        drift_penalty: float = Field(
            default=0.0,
            ge=0,
            description="cost of moving the defended latents by their own norm, in clean margins",
        )

    config: Config

    @property
    def length(self) -> int:
        return self.config.length

    def restarts(self, problem: Problem) -> range:
        """The numbers of the starts behind the first one."""
        return range(1, self.config.starts if problem.allowance is None else 1)
