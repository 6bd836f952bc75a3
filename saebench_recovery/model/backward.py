"""What passes gradients through a defense in place of its own backward pass.

A defense can hand out any gradient, or none (arXiv 1802.00420). The identity stands in for it
(section 4.1.1 there) where only the behaviour counts. Where a search is also held to what the
defended latents read behind the defense, the identity has the wrong sign for some of them; there
the defense's own differences stand in, which is exact to first order for every defense that reads
the defended latents and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from saebench_recovery.sae.latents import Latents

Backward = Literal["own", "identity", "measured"]

MOST = 64  # directions that are measured; those that the latents share most come first
STEP = 1e-3  # over the residual's norm: float32 keeps four digits of such a slope


def passed_by(
    intervene: Callable[[Tensor], Tensor],
    entering_RQD: Tensor,
    leaving_RQD: Tensor,
    latents: Latents,
    backward: Literal["identity", "measured"],
) -> Tensor:
    """What left a defense without a gradient, with one that does not ask the defense for it."""
    with torch.no_grad():
        if backward == "measured" and entering_RQD.requires_grad:
            span_DK = _span(latents)
        else:
            span_DK = entering_RQD.new_zeros(entering_RQD.shape[-1], 0)
        slopes_RQKD = _slopes(intervene, entering_RQD, span_DK)
    passed = _Passed.apply(entering_RQD, leaving_RQD, span_DK, slopes_RQKD)  # type: ignore[no-untyped-call]
    return cast(Tensor, passed)


def _span(latents: Latents) -> Tensor:
    """An orthonormal basis [D, K] of the directions that the latents read."""
    left_DK, size_K, _ = torch.linalg.svd(latents.columns_DS.cpu(), full_matrices=False)
    kept_K = size_K[:MOST] > 1e-5 * size_K[0]
    span_DK: Tensor = left_DK[:, :MOST][:, kept_K].to(latents.columns_DS)
    return span_DK


def _slopes(intervene: Callable[[Tensor], Tensor], resid_RQD: Tensor, span_DK: Tensor) -> Tensor:
    """How what is added changes [R, Q, K, D] as the residual moves along each direction."""
    step_RQ1 = STEP * resid_RQD.float().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    slopes = []
    for direction_D in span_DK.unbind(1):
        moved_RQD = step_RQ1 * direction_D
        ahead, behind = (intervene(resid_RQD + sign * moved_RQD) for sign in (1, -1))
        slopes.append((ahead - behind) / (2 * step_RQ1) - direction_D)
    return torch.stack(slopes, 2) if slopes else resid_RQD.new_zeros(*resid_RQD.shape[:2], 0, 1)


class _Passed(torch.autograd.Function):
    """The second argument; its gradient in the first is that of x + slopes' span x."""

    @staticmethod
    def forward(
        ctx: Any, entering: Tensor, leaving: Tensor, span_DK: Tensor, slopes_RQKD: Tensor
    ) -> Tensor:
        ctx.save_for_backward(span_DK, slopes_RQKD)
        return leaving.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_RQD,), (span_DK, slopes_RQKD) = grads, ctx.saved_tensors
        if span_DK.shape[1]:
            # `einsum` has no rule for many gradients at once, which Jacobian rows ask for.
            pull_RQK = (grad_RQD[:, :, None] * slopes_RQKD).sum(-1)
            grad_RQD = grad_RQD + pull_RQK @ span_DK.T
        return grad_RQD, None, None, None
