"""What a search leaves behind: the cost of each row, and when it first had what it was after."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench_recovery.base.precision import finest
from saebench_recovery.model.perturbation import Perturbation


class Trail:
    """What the search has cost each of N rows, and had cost when its objective was first reached.

    FLOPs [N], in float64 where the device has it; `first_N` is infinite until then. Every
    selection of a problem's rows writes into the one trail of the whole problem.

    Of a search that has begun, `known` are the FLOPs that it accounts for, and what no row is
    booked for is borne by the rows `searching`. An attack that is to show what it reached has each
    row's first perturbation that did `kept`.
    """

    known: float | None = None
    searching: Tensor | None = None
    kept: list[tuple[Tensor, Perturbation]] | None = None

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.spent_N = torch.zeros(size, dtype=finest(torch.device(device)), device=device)
        self.first_N = torch.full_like(self.spent_N, torch.inf)

    def spend(self, row_N: Tensor, flops: float) -> None:
        """Add work that cost so many FLOPs a row; one may be among them several times."""
        self.spent_N.index_add_(0, row_N, torch.full_like(self.spent_N[row_N], flops))

    def begin(self, row_N: Tensor, flops: float) -> None:
        """A search of these rows begins, at so many FLOPs of its meter."""
        self.catch_up(flops)
        self.searching, self.known = row_N, flops

    def catch_up(self, flops: float) -> None:
        """What the search has cost since, and no row was booked for, all of its rows bear."""
        if self.known is not None and self.searching is not None and flops > self.known:
            self.spend(self.searching, (flops - self.known) / len(self.searching))
            self.known = flops

    def reach(
        self, row_N: Tensor, reached_N: Tensor, perturbation: Perturbation | None = None
    ) -> None:
        """Note the rows whose objective is reached now, by this."""
        if self.kept is not None and perturbation is not None:
            new = (reached_N & self.first_N[row_N].isinf()).nonzero()[:, 0]
            if len(new):
                self.kept.append((row_N[new], perturbation.rows(new)))
        now_N = torch.where(reached_N, self.spent_N[row_N], torch.inf)
        self.first_N.scatter_reduce_(0, row_N, now_N, "amin")
