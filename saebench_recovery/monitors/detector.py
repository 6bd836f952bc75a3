"""What a detector learns from, and what it is: a score of how suspicious a residual is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench_recovery.base.precision import exact
from saebench_recovery.sae.latents import Dictionary

SHRINKAGE = 0.1  # of a covariance towards a sphere: it keeps unseen directions finite

Score = Callable[[Tensor], Tensor]
"""From residuals [..., D] to suspicion [...]: a function of each token alone."""


@dataclass(frozen=True)
class Undisturbed:
    """Content tokens of selection prompts as they enter the defense at a site.

    `pull_ND` is the behaviour's gradient there, `size` the root mean square distance of the
    residuals from their mean.
    """

    dictionary: Dictionary
    resid_ND: Tensor
    pull_ND: Tensor

    @property
    def size(self) -> float:
        exact_ND = exact(self.resid_ND)
        centred_ND = exact_ND - exact_ND.mean(0)
        return float(centred_ND.square().sum(1).mean().sqrt())


Detector = Callable[[Undisturbed], Score]
"""Learns a score from undisturbed text at one site."""


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """Distance from a mean, in units of a covariance that is shrunk towards a sphere."""

    mean_D: Tensor
    whitening_DD: Tensor

    @classmethod
    def of(cls, seen_ND: Tensor) -> Mahalanobis:
        exact_ND = exact(seen_ND)
        covariance_DD = torch.cov(exact_ND.T)
        floor = SHRINKAGE * covariance_DD.diagonal().mean().clamp(min=1e-12)
        covariance_DD.diagonal().add_(floor)
        root_DD = torch.linalg.cholesky(covariance_DD)
        mean_D, whitening_DD = exact_ND.mean(0), torch.linalg.inv(root_DD).T
        return cls(*(t.float().to(seen_ND.device) for t in (mean_D, whitening_DD)))

    def __call__(self, seen: Tensor) -> Tensor:
        distance: Tensor = ((seen.float() - self.mean_D) @ self.whitening_DD).norm(dim=-1)
        return distance
