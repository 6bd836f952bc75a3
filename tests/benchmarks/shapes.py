"""Models of real sizes to time: pretrained where they can be had offline, else random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config

from saebench_recovery.targets.hub import load_model
from saebench_recovery.targets.presets import bare
from tests.benchmarks.setting import Workload, model_workload
from tests.tiny import LATENTS, tiny_model


@dataclass(frozen=True)
class Shape:
    """A model, the layer behind which it is clamped, and what else a table starts from."""

    make: Callable[[], nn.Module]
    layer: int
    tokens: int = 100
    latents: int = 32
    latents_grow: tuple[int, ...] = (20, 100, 500)
    width: int = 65536
    widths_grow: tuple[int, ...] = (512, 4096, 65536)

    def model(self, device: str) -> nn.Module:
        torch.manual_seed(0)
        return self.make().to(device)

    def workload(
        self, model: nn.Module, latents: int | None = None, width: int | None = None
    ) -> Workload:
        return model_workload(
            model,
            self.layer,
            tokens=self.tokens,
            latents=latents or self.latents,
            width=width or self.width,
        )


def _pretrained(name: str) -> nn.Module:
    return cast(nn.Module, load_model(bare(name))[1])


def _gemma_2_2b() -> nn.Module:
    # The configuration's defaults are the sizes of this model.
    random = AutoModelForCausalLM.from_config(Gemma2Config(), dtype=torch.bfloat16)
    return cast(nn.Module, random)


SHAPES = {
    "gemma-3-270m": Shape(lambda: _pretrained("gemma-3-270m"), layer=9, width=4096),
    "gemma-2-2b": Shape(_gemma_2_2b, layer=11),
    "tiny": Shape(
        lambda: tiny_model("gemma3"),
        layer=1,
        tokens=12,
        latents=8,
        latents_grow=(4, 16),
        width=LATENTS,
        widths_grow=(64, LATENTS),
    ),
}
