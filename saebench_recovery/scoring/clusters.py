"""Clusters: examples made from one source item are not independent, and count as one cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def totals(values: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Sum of the values in each cluster, and how many there are in each.

    An empty cluster name means that the example stands alone.

    Raises:
        ValueError: not as many cluster names as values.
    """
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values, but {len(clusters)} clusters")
    number: dict[str | int, int] = {}
    index = [number.setdefault(name or i, len(number)) for i, name in enumerate(clusters)]
    return (
        np.bincount(index, weights=values, minlength=len(number)).astype(np.float64),
        np.bincount(index, minlength=len(number)).astype(np.float64),
    )
