"""`straight-through`: the null space, with gradients that pass the defense unchanged.

Backward pass differentiable approximation (arXiv 1802.00420, section 4.1.1) by the identity, for
defenses whose own backward pass is wrong or missing.
"""

from __future__ import annotations

from pydantic import Field
from saebench_recovery.attacks._residual import THROUGH, Through
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery.registry import register_attack


@register_attack("straight-through")
class StraightThrough(Orthogonal):
    """`orthogonal` with `through=identity`, by a name of its own for suites that hold both."""

    class Config(Orthogonal.Config):
        through: Through = Field(default="identity", description=THROUGH)
