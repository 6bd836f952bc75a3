"""What the built-in suffix attacks have in common: how long a suffix they put into the prompt."""

from __future__ import annotations

from pydantic import Field

from saebench_recovery.interfaces import Attack, PluginConfig


class SuffixAttack(Attack):
    """An attack that puts a suffix of fixed length into the prompt."""

    class Config(PluginConfig):
        length: int = Field(default=8, ge=1, le=512, description="tokens of the suffix")

    config: Config

    @property
    def length(self) -> int:
        return self.config.length
