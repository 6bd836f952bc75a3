"""`mahalanobis`: the residual itself is unlike those of undisturbed text."""

from __future__ import annotations

from saebench_recovery.monitors.detector import Mahalanobis, Score, Undisturbed


def mahalanobis(undisturbed: Undisturbed) -> Score:
    """Mahalanobis distance of a token's residual (Lee et al., arXiv 1807.03888, equation 2).

    With a single class; as a monitor of latent states in Bailey et al., arXiv 2412.09565.
    """
    return Mahalanobis.of(undisturbed.resid_ND)
