"""Ranks with ties: only what was shown to differ is ranked apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEVEL = 0.05


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being so many, in the order given.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6 (1979): the chance of any false claim at or below a level is at most that level,
    however the tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def ranks(
    estimates: Mapping[str, float], adjusted: Mapping[tuple[str, str], float]
) -> dict[str, int]:
    """Rank of each defense by its behaviour under attack (less is better), ties shared.

    `adjusted` holds the p-value of each pair, after `holm`, under either order of the names; a
    pair that is missing counts as not separated. One defense is significantly better than another
    if its estimate is lower and their p-value at most 0.05. The rank of a defense is 1 + the
    number of defenses significantly better than it, or, if that is less, that of one whose
    estimate is no better than its own: not to be separated is not transitive, and without the
    second half a defense would be ranked below a worse one that was measured less sharply.

    So ranks never go against the order of the estimates, equal estimates share a rank, and the
    best estimate has rank 1. Whoever has rank r is behind r - 1 others significantly, as is
    everyone with a worse estimate; two that share a rank may yet be separated from each other.
    """

    def separated(a: str, b: str) -> bool:
        return min(adjusted.get((a, b), 1.0), adjusted.get((b, a), 1.0)) <= LEVEL

    better = {
        a: sum(estimates[b] < estimates[a] and separated(a, b) for b in estimates)
        for a in estimates
    }
    return {
        a: 1 + min(better[b] for b in estimates if estimates[b] >= estimates[a]) for a in estimates
    }
