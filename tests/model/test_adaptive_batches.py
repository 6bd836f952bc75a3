"""Batches hold whole groups of rows that share something, or a part of one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saebench_recovery.model.adaptive_batches import AdaptiveBatches


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 100])
@pytest.mark.parametrize("group", [1, 5, 9])
def test_no_batch_holds_parts_of_two_groups(group: int, rows: int) -> None:
    batches: list[tuple[int, int]] = []

    def work(index: Tensor) -> Tensor:
        batches.append((int(index[0]), len(index)))
        return index

    found = AdaptiveBatches(rows, 2**20).over(90, group, work)
    assert torch.equal(found, torch.arange(90))
    for begin, size in batches:
        assert (begin % group == size % group == 0) or begin % group + size <= group
