"""Work in batches as large as memory allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError

PATIENCE = 8  # batches that must fit before larger ones are tried


class AdaptiveBatches:
    """Rows per batch: halved whenever memory runs out, and doubled again once several fitted.

    `most` bounds the growth where running out of memory would not raise.
    """

    def __init__(self, rows: int, most: int) -> None:
        self.rows, self._most, self._fitted = max(1, rows), max(1, most), 0

    def over(self, total: int, group: int, work: Callable[[Tensor], Tensor]) -> Tensor:
        """Concatenated results of `work(indices)` on all of `total` rows.

        `group` neighbours share something: batches hold whole groups, or a part of one.

        Raises:
            UserError: not even one row fits.
        """
        done: list[Tensor] = []
        begin = 0
        while begin < total:
            whole, rest = self.rows - self.rows % group, -begin % group
            size = min(self.rows, rest) if rest else whole or self.rows
            try:
                done.append(work(torch.arange(begin, min(total, begin + size))))
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise UserError("one candidate does not fit the device's memory") from None
                self.rows, self._fitted = self.rows // 2, 0
                continue
            begin += size
            self._fitted += 1
            if self._fitted >= PATIENCE:
                self.rows, self._fitted = min(2 * self.rows, self._most), 0
        return torch.cat(done)
