"""`orthogonal`: recovery in the null space of the defended latents' encoder directions.

Post-intervention recovery (arXiv 2606.18322, section on encoder projection), with the delta
itself kept in the null space instead of only its gradient.
"""

from __future__ import annotations

from saebench_recovery.attacks._ascent import ResidualAscent

from saebench_recovery.registry import register_attack


@register_attack("orthogonal")
class Orthogonal(ResidualAscent):
    """Moves only where no defended latent at the perturbed site can see it."""

    constrained = True
