"""The smallest perturbation that recovers, exactly, where nothing but the final norm follows it.

After the last block the logits are W n(y) with n the model's final layer norm, so a token beats a
rival where

    v . C(y + d) + c s(y + d) >= 0,   v = gain * w,   c = bias . w,   w = w_token - w_rival

with C the centring and s the standard deviation: one second-order cone for each rival, convex
where c <= 0. The smallest d in the null space of the defended encoder columns is found in float64,
with as many rivals as bind, and is held to the first-order optimality conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

Array = np.ndarray[Any, np.dtype[np.float64]]

FEASIBLE, STATIONARY = 1e-7, 1e-5  # relative to the constraint's slope, and to the delta


@dataclass(frozen=True)
class Head:
    """The final layer norm and the unembedding [V, D]."""

    weight_VD: Array
    gain_D: Array
    bias_D: Array
    epsilon: float


@dataclass(frozen=True)
class Optimum:
    """A delta [D] of the smallest norm; `verified`: optimality conditions hold."""

    delta_D: Array
    convex: bool
    verified: bool

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.delta_D))


def smallest(
    head: Head, resid_D: Array, free_DK: Array, token: int, rivals: list[int]
) -> Optimum | None:
    """The shortest delta in the span of `free_DK` (orthonormal) after which `token` beats `rivals`.

    None where none was found.
    """
    binding: list[int] = []
    start_K = np.zeros(free_DK.shape[1])
    while True:
        cones = [Cone.of(head, resid_D, free_DK, token, rival) for rival in binding]
        found_K = _solved(cones, start_K)
        if found_K is None:
            return None
        scores = head.weight_VD[rivals] @ _normed(head, resid_D + free_DK @ found_K)
        worst = rivals[int(scores.argmax())]
        own = float(head.weight_VD[token] @ _normed(head, resid_D + free_DK @ found_K))
        if own >= scores.max() - 1e-9 or worst in binding:
            return Optimum(
                free_DK @ found_K, all(c.offset <= 0 for c in cones), _verified(cones, found_K)
            )
        binding.append(worst)
        start_K = found_K


@dataclass(frozen=True)
class Cone:
    """One rival's constraint on the coordinates [K] of a delta."""

    resid_D: Array
    free_DK: Array
    slope_D: Array
    offset: float
    epsilon: float

    @classmethod
    def of(cls, head: Head, resid_D: Array, free_DK: Array, token: int, rival: int) -> Cone:
        apart_D = head.weight_VD[token] - head.weight_VD[rival]
        slope_D = head.gain_D * apart_D
        return cls(
            _centred(resid_D),
            free_DK - free_DK.mean(0),
            slope_D,
            float(head.bias_D @ apart_D),
            head.epsilon,
        )

    def value(self, at_K: Array) -> float:
        moved_D = self.resid_D + self.free_DK @ at_K
        return float(self.slope_D @ moved_D + self.offset * self._deviation(moved_D))

    def gradient(self, at_K: Array) -> Array:
        moved_D = self.resid_D + self.free_DK @ at_K
        spread_D = moved_D / (len(moved_D) * self._deviation(moved_D))
        found_K: Array = self.free_DK.T @ (self.slope_D + self.offset * spread_D)
        return found_K

    def _deviation(self, centred_D: Array) -> float:
        return float(np.sqrt(np.mean(centred_D**2) + self.epsilon))


def _solved(cones: list[Cone], start_K: Array) -> Array | None:
    if not cones:
        return np.zeros_like(start_K)
    scales = [float(np.linalg.norm(c.gradient(start_K))) for c in cones]
    result = minimize(
        lambda at_K: at_K @ at_K / 2,
        start_K,
        jac=lambda at_K: at_K,
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda at_K: np.array(
                [c.value(at_K) / s for c, s in zip(cones, scales, strict=True)]
            ),
            "jac": lambda at_K: np.array(
                [c.gradient(at_K) / s for c, s in zip(cones, scales, strict=True)]
            ),
        },
        options={"ftol": 1e-15, "maxiter": 500},
    )
    found_K: Array = result.x
    return found_K if np.isfinite(found_K).all() and _feasible(cones, found_K) else None


def _feasible(cones: list[Cone], at_K: Array) -> bool:
    return all(c.value(at_K) >= -FEASIBLE * float(np.linalg.norm(c.gradient(at_K))) for c in cones)


def _verified(cones: list[Cone], at_K: Array) -> bool:
    """The delta is a combination, with no negative weight, of the gradients of what binds."""
    if not cones:
        return not at_K.any()
    gradients = np.array([c.gradient(at_K) for c in cones])
    size = np.linalg.norm(gradients, axis=1)
    tight = [abs(c.value(at_K)) <= 1e-5 * s for c, s in zip(cones, size, strict=True)]
    if not any(tight):
        return False
    _, rest = nnls((gradients[tight] / size[tight, None]).T, at_K)
    return _feasible(cones, at_K) and rest <= STATIONARY * float(np.linalg.norm(at_K))


def _centred(resid_D: Array) -> Array:
    centred_D: Array = resid_D - resid_D.mean()
    return centred_D


def _normed(head: Head, resid_D: Array) -> Array:
    centred_D = _centred(resid_D)
    spread = np.sqrt(np.mean(centred_D**2) + head.epsilon)
    normed_D: Array = centred_D / spread * head.gain_D + head.bias_D
    return normed_D
