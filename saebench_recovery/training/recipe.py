"""What a training run is. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Residual rows per optimiser step, and in one shuffled block.
BATCH, BLOCK = 512, 64 * 512
FEWEST_STEPS = 10


class Recipe(BaseModel):
    """Everything that decides the weights of an SAE, besides the model and the text themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(description="name, file or folder of the model")
    hook: str = Field(description="hook point, such as blocks.9.hook_resid_post")
    text: str | None = Field(description="file or data set; null: none besides the chats")
    chat: str | None = Field(
        default=None,
        description="table of requests and answers; without text and chats the model writes text",
    )
    architecture: Literal["batchtopk", "topk", "jumprelu"] = "batchtopk"
    width: int = Field(default=4096, ge=1, le=2**22, description="latents")
    l0: int = Field(default=64, ge=1, description="latents that are on at a token, on average")
    tokens: int = Field(default=1_000_000, ge=FEWEST_STEPS * BATCH, description="tokens in all")
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        if self.l0 >= self.width:
            raise ValueError(f"l0 is {self.l0} of {self.width} latents; it must be fewer than all")
        if self.tokens < self.width:
            raise ValueError(f"{self.tokens} tokens are too few to train {self.width} latents on")
        return self

    @property
    def steps(self) -> int:
        return self.tokens // BATCH

    @property
    def block(self) -> int:
        """Residual rows that are shuffled together."""
        return min(BLOCK, self.tokens)
