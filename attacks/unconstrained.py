"""`unconstrained`: gradient ascent in the budget ball, free to move the defended latents."""

from __future__ import annotations

from saebench_recovery.attacks._ascent import ResidualAscent

from saebench_recovery.registry import register_attack


@register_attack("unconstrained")
class Unconstrained(ResidualAscent):
    """The upper bound that a constrained attack is compared with."""
