"""The direction of the residual that tells some tokens from others."""

from __future__ import annotations

import torch
from torch import Tensor

SHRINKAGE = 0.1  # towards no correlation: a few hundred tokens say little of a large covariance


def discriminant(some_ND: Tensor, others_ND: Tensor) -> Tensor:
    """Fisher's linear discriminant [D], float32: larger products with residuals of `some_ND`.

    Fisher (Annals of Eugenics 7, 1936): the difference of the means by the inverse of the
    covariance within either, each dimension by its own spread first. The covariance is shrunk
    (Friedman, "Regularized discriminant analysis", JASA 84, 1989).
    """
    both = [some_ND.float(), others_ND.float()]
    spread_D = torch.cat(both).std(0).clamp(min=1e-6)
    means = [tokens_ND.mean(0) / spread_D for tokens_ND in both]
    within_ND = torch.cat([x / spread_D - mean for x, mean in zip(both, means, strict=True)])
    covariance_DD = within_ND.T @ within_ND / len(within_ND)
    shrunk_DD = torch.lerp(covariance_DD, torch.eye(len(spread_D)).to(spread_D), SHRINKAGE)
    direction_D: Tensor = torch.linalg.solve(shrunk_DD, means[0] - means[1])
    return direction_D / spread_D
