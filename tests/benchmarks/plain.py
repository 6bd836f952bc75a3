"""The plain way to search for a perturbation, as the published loop does it.

One example at a time, every step runs the whole model from the tokens with a hook, encodes and
decodes the whole dictionary at every position and computes all logits, for one delta. Step rule,
projection and budget are the engine's, so that both must find the same delta.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.interfaces import Example
from saebench_recovery.model.activations import as_written
from saebench_recovery.model.hooks import blocks
from saebench_recovery.model.products import own_products
from tests.benchmarks.setting import Workload


class PlainSearch:
    """A model as a user has it: transformers' own fused attention, frozen weights, one hook."""

    def __init__(self, workload: Workload) -> None:
        setting = workload.setting
        active, attack = setting.active, setting.attack
        assert isinstance(active.defense, Clamp)
        assert isinstance(attack, Orthogonal)
        self.config = attack.config
        shared = {id(weight): weight for weight in active.target.model.parameters()}
        with as_written(active.target.model), own_products(active.target.model):
            self.model = cast(Any, copy.deepcopy(active.target.model, shared))
        self.model.set_attn_implementation("sdpa" if self.model._supports_sdpa else "eager")
        ((self.site, self.latents),) = active.defense.latents.items()
        self.sae = setting.target.dictionary(self.site)
        columns = self.latents.columns_DS.double()
        self.basis_DS = torch.linalg.qr(columns / columns.norm(dim=0)).Q

    def search(self, example: Example, budget: float) -> Tensor:
        """The best delta [D] within a budget relative to the defended residual's norm."""
        delta_D = best_D = torch.zeros_like(self.basis_DS[:, 0], dtype=torch.float32)
        momentum_D = torch.zeros_like(delta_D)
        best, longest = -math.inf, 0.0
        for step in range(self.config.steps + 1):
            leaf = delta_D.clone().requires_grad_()
            margin, resid_D = self.margin(example, leaf)
            if step == 0:
                longest = budget * resid_D.norm().item()
            if margin.item() > best:
                best, best_D = margin.item(), delta_D
            if step == self.config.steps:
                break
            (grad_D,) = torch.autograd.grad(margin, leaf)
            momentum_D = 0.75 * momentum_D + 0.25 * grad_D / grad_D.norm()
            rate = self.config.lr * (1 + math.cos(math.pi * step / self.config.steps)) / 2
            wide = (delta_D + rate * longest * momentum_D / momentum_D.norm()).double()
            delta_D = (wide - self.basis_DS @ (self.basis_DS.T @ wide)).float()
            delta_D = delta_D * min(1.0, longest / delta_D.norm().item())
        return best_D

    def margin(self, example: Example, delta_D: Tensor) -> tuple[Tensor, Tensor]:
        """Margin of the first answer, and the defended residual [D] at the last token."""
        seen: list[Tensor] = []

        def hook(_: Any, __: Any, resid_1TD: Tensor) -> Tensor:
            seen.append(self.defended(resid_1TD, delta_D))
            return seen[0]

        handle = blocks(self.model)[self.site.layer].register_forward_hook(hook)
        ids = torch.tensor([example.prompt], device=delta_D.device)
        logits_V = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
        handle.remove()
        score_C = logits_V[[answer[0] for answer in example.candidates]]
        return score_C[0] - score_C[1:].max(), seen[0][0, -1].detach().float()

    def defended(self, resid_1TD: Tensor, delta_D: Tensor) -> Tensor:
        """The residual with the delta at the last token and the active latents inverted."""
        here_11D = (resid_1TD[:, -1:] + delta_D).to(resid_1TD.dtype)
        moved = torch.cat([resid_1TD[:, :-1], here_11D], 1)
        z_1TM = self.sae.encode(moved)
        error = moved - self.sae.decode(z_1TM, moved)
        clamped = z_1TM.clone()
        clamped[..., self.latents.features] *= -2
        changed = (self.sae.decode(clamped, moved) + error).to(resid_1TD.dtype)
        return torch.cat([moved[:, :1], changed[:, 1:]], 1)  # BOS is spared
