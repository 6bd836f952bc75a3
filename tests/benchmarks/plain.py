"""The plain way to search for a perturbation, as the published loop does it.

One example at a time, every step runs the whole model from the tokens with a hook, encodes and
decodes the whole dictionary at every position and computes all logits; Adam on one delta. Step
sizes, projection and budget are the engine's, so that both must find the same delta.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from saebench_recovery.defenses.clamp import Clamp
from saebench_recovery.interfaces import Example
from saebench_recovery.recovery.ascent import ResidualAscent
from tests.benchmarks.setting import RELATIVE_BUDGET, Setting


class Plain:
    """A model as a user has it: transformers' own (fused) attention, and plain hooks."""

    def __init__(self, setting: Setting) -> None:
        self.model: Any = copy.deepcopy(setting.active.target.model)
        self.model.set_attn_implementation("sdpa")
        assert isinstance(setting.active.defense, Clamp)
        self.clamp = setting.active.defense
        self.site = setting.site
        self.sae = setting.active.target.dictionary(setting.site)
        self.latents = self.clamp.latents[setting.site]

    def defended(self, resid_1TD: Tensor, delta_D: Tensor) -> Tensor:
        """The residual with the delta at the last token and the latents inverted after it."""
        moved = torch.cat([resid_1TD[:, :-1], resid_1TD[:, -1:] + delta_D], 1)
        z_1TM = self.sae.encode(moved)
        clamped = z_1TM.clone()
        on = z_1TM[..., self.latents.features] > 0
        inverted = torch.where(on, -2 * z_1TM[..., self.latents.features], 0.0)
        clamped[..., self.latents.features] = inverted
        error = moved - self.sae.decode(z_1TM, moved)
        changed = self.sae.decode(clamped, moved) + error
        return torch.cat([moved[:, :1], changed[:, 1:]], 1)  # BOS is spared

    def margin(self, example: Example, delta_D: Tensor, seen: list[Tensor]) -> Tensor:
        """Logit of the first answer less that of the second; `seen` receives the residual."""

        def hook(_: Any, __: Any, resid_1TD: Tensor) -> Tensor:
            seen.append(self.defended(resid_1TD, delta_D))
            return seen[-1]

        handle = self.model.transformer.h[self.site.layer].register_forward_hook(hook)
        ids = torch.tensor([example.prompt])
        logits_V = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
        handle.remove()
        right, other = (answer[0] for answer in example.candidates)
        margin: Tensor = logits_V[right] - logits_V[other]
        return margin

    def ascend(self, example: Example, config: ResidualAscent.Config) -> tuple[Tensor, list[float]]:
        """The best delta [D], and the margin before every step."""
        columns = self.latents.columns_DS.double()
        basis_DS = torch.linalg.qr(columns / columns.norm(dim=0)).Q
        delta_D = best_D = torch.zeros(columns.shape[0])
        first, second = torch.zeros_like(delta_D), torch.zeros_like(delta_D)
        margins: list[float] = []
        budget = 0.0
        for step in range(config.steps):
            leaf = delta_D.clone().requires_grad_()
            seen: list[Tensor] = []
            margin = self.margin(example, leaf, seen)
            (grad_D,) = torch.autograd.grad(margin, leaf)
            if step == 0:
                budget = RELATIVE_BUDGET * float(seen[0][0, -1].norm())
            if not margins or margin.item() > max(margins):
                best_D = delta_D
            margins.append(margin.item())
            unit = grad_D / grad_D.norm()
            first = 0.9 * first + 0.1 * unit
            second = 0.999 * second + 0.001 * unit**2
            mean = first / (1 - 0.9 ** (step + 1))
            spread = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            rate = config.lr * (1 + math.cos(math.pi * step / config.steps)) / 2
            delta_D = delta_D + rate * budget / len(delta_D) ** 0.5 * mean / spread
            wide = delta_D.double()
            delta_D = (wide - basis_DS @ (basis_DS.T @ wide)).float()
            delta_D = delta_D * min(1.0, budget / float(delta_D.norm()))
        return best_D, margins
