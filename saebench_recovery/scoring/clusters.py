"""Clusters: examples made from one source item are not independent, and count as one cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def totals(values_RE: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Sum of the values in each cluster [R, M], and how many there are in each [M].

    An empty cluster name means that the example stands alone. The leading axis may be missing.

    Raises:
        ValueError: not as many cluster names as values.
    """
    count = values_RE.shape[-1]
    if len(clusters) != count:
        raise ValueError(f"{count} values, but {len(clusters)} clusters")
    number: dict[str | int, int] = {}
    index = [number.setdefault(name or i, len(number)) for i, name in enumerate(clusters)]
    index_E, M = np.array(index, dtype=np.intp), len(number)
    rows = values_RE.reshape(values_RE.size // max(1, count), count)
    place_N = (M * np.arange(len(rows))[:, None] + index_E).ravel()
    total_N = np.bincount(place_N, weights=rows.ravel(), minlength=M * len(rows))
    size_M = np.bincount(index_E, minlength=M).astype(np.float64)
    return total_N.astype(np.float64).reshape(*values_RE.shape[:-1], M), size_M


def defined_alike(
    values_RE: Array, clusters: Sequence[str]
) -> Iterator[tuple[list[int], Array, list[str]]]:
    """Rows that are defined on the same examples together: their numbers, values and clusters.

    NaN is undefined. Of many rows, each step of a calculation is then made once for all. A row
    that is alone comes without the leading axis: powers of arrays and of numbers may differ in the
    last bit, and what a row of a run says must not change with what is calculated beside it.

    Raises:
        ValueError: not as many cluster names as values.
    """
    if len(clusters) != values_RE.shape[1]:
        raise ValueError(f"{values_RE.shape[1]} values, but {len(clusters)} clusters")
    defined_RE = ~np.isnan(values_RE)
    rows: dict[bytes, list[int]] = {}
    for number, defined_E in enumerate(defined_RE):
        rows.setdefault(defined_E.tobytes(), []).append(number)
    for numbers in rows.values():
        defined_E = defined_RE[numbers[0]]
        names = [name for name, one in zip(clusters, defined_E, strict=True) if one]
        values = np.ascontiguousarray(values_RE[numbers][:, defined_E])
        yield numbers, values if len(numbers) > 1 else values[0], names


def by_row(*columns_R: Array) -> list[list[float]]:
    """Python's numbers, row by row, of columns whose leading axis may be missing."""
    rows: list[list[float]] = np.stack([np.atleast_1d(one_R) for one_R in columns_R], -1).tolist()
    return rows
