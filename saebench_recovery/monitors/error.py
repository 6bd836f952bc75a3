"""`error`: the SAE's reconstruction error is unlike the errors of undisturbed text."""

from __future__ import annotations

from torch import Tensor

from saebench_recovery.monitors.detector import Mahalanobis, Score, Undisturbed


def error(undisturbed: Undisturbed) -> Score:
    """Mahalanobis distance of a token's reconstruction error.

    For perturbations that hide from the latents and so travel in what the SAE leaves out.
    """

    def of(resid: Tensor) -> Tensor:
        x = resid.float()
        return x - undisturbed.dictionary.reconstruct(x)

    distance = Mahalanobis.of(of(undisturbed.resid_ND))
    return lambda resid: distance(of(resid))
