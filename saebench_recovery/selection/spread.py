"""How far a site's residuals lie apart: the unit in which perturbations are measured.

A norm relative to the residual's own says little where one dimension dominates it: in some models
a single dimension holds most of the variance at every token. The spread is the root mean square
distance of residuals from their mean, without such dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saebench_recovery.base.precision import exact
from saebench_recovery.base.sites import Site
from saebench_recovery.schema import Spread
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.targets.target import Target

MASSIVE = 50.0  # times the median dimension's variance: 27 is the most on the embedded model
LEAST_SPREAD = 1e-6  # keeps a budget positive where all residuals are alike


def spread(target: Target, site: Site, prompts: Sequence[tuple[int, ...]]) -> Spread:
    """The spread of a site over the content tokens of some prompts.

    Dimensions whose variance is more than `MASSIVE` times the median one's are left out and
    listed.
    """
    count, total_D, square_D = 0, torch.zeros(()), torch.zeros(())
    for _, resid_ND in content_residuals(target, site, prompts):
        exact_ND = exact(resid_ND)
        count += len(exact_ND)
        total_D, square_D = total_D + exact_ND.sum(0), square_D + exact_ND.square().sum(0)
    variance_D: Tensor = (square_D / count - (total_D / count).square()).clamp_min(0)
    massive_D = variance_D > MASSIVE * variance_D.median()
    kept = float(variance_D[~massive_D].sum().sqrt())
    return Spread(value=max(kept, LEAST_SPREAD), massive=tuple(massive_D.nonzero()[:, 0].tolist()))
