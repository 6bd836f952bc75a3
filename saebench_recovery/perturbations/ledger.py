"""What a search by residual deltas was shown of each row: its best point, and one drawn from all.

Every objective that a search acts on stands here, whatever took the pass. A row that it took for
done was shown so at its best point; one that it was shown as out of reach, at most of the others.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.perturbation import ResidualDelta


def secret() -> Generator:
    """Random numbers that nobody can know before they are drawn, and that no seed repeats.

    They decide what is looked at again, and no figure of a row.
    """
    return torch.Generator().manual_seed(secrets.randbits(63))


class Points:
    """A delta of each of R rows and the objective [R] there; minus infinity where none is kept."""

    def __init__(self, size: int, like: ResidualDelta) -> None:
        self._size = size  # one more is where what is not kept is written
        self.objective_R = like.positions_EP.new_full((size + 1,), -torch.inf, dtype=torch.float32)
        self.kept_R = torch.zeros_like(self.objective_R, dtype=torch.bool)
        self._positions_RP = like.positions_EP.new_full((size + 1, like.positions_EP.shape[1]), -1)
        self._values: Mapping[Site, Tensor] = {
            site: values.new_zeros(size + 1, *values.shape[1:])
            for site, values in like.values.items()
        }

    def take(self, delta: ResidualDelta) -> bool:
        """Whether deltas like this one are kept: of the same sites, positions and width."""
        return delta.values.keys() == self._values.keys() and all(
            values.shape[1:] == self._values[site].shape[1:]
            for site, values in delta.values.items()
        )

    def write(
        self, row_N: Tensor, wanted_N: Tensor, delta: ResidualDelta, objective_N: Tensor
    ) -> None:
        """Keep the wanted ones in place of those of their rows; never two for one row."""
        slot_N = torch.where(wanted_N, row_N, self._size)
        self.objective_R.index_copy_(0, slot_N, objective_N)
        self.kept_R.index_fill_(0, slot_N, True)
        self._positions_RP.index_copy_(0, slot_N, delta.positions_EP)
        for site, values in delta.values.items():
            kept = self._values[site]
            kept.index_copy_(0, slot_N, values.detach().to(kept.dtype))

    def all(self) -> tuple[ResidualDelta, Tensor, Tensor]:
        """The deltas of all rows, what was shown there [R], and of which rows there is one [R]."""
        values = {site: kept[:-1] for site, kept in self._values.items()}
        delta = ResidualDelta(values, self._positions_RP[:-1])
        return delta, self.objective_R[:-1], self.kept_R[:-1]


class Ledger:
    """Keeps of each row the best point that a search was shown, and one drawn from all.

    What is drawn is decided behind the pass: the pass itself cannot be one that is not looked at.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._looks_R: Tensor | None = None
        self._kept: tuple[Points, Points] | None = None

    @property
    def kept(self) -> tuple[Points, ...]:
        return self._kept or ()

    @torch.no_grad()
    def note(self, row_N: Tensor, delta: ResidualDelta, objective_N: Tensor) -> None:
        """Note one look at some rows; one may be among them several times."""
        if self._kept is None:
            self._kept = Points(self._size, delta), Points(self._size, delta)
            self._looks_R = torch.zeros_like(self._kept[0].objective_R)
        best, drawn = self._kept
        if not best.take(delta):
            return
        assert self._looks_R is not None
        shown_N = objective_N.detach().float().nan_to_num(nan=-torch.inf)
        self._looks_R[row_N] += 1
        random = secret()
        chance_N = torch.rand(len(row_N), generator=random).to(row_N.device)
        order_N = torch.randperm(len(row_N), generator=random).to(row_N.device)
        most_R = best.objective_R.scatter_reduce(0, row_N, shown_N, "amax")
        better_N = (shown_N > best.objective_R[row_N]) & (shown_N == most_R[row_N])
        best.write(row_N, _one_each(row_N, better_N, order_N, self._size), delta, shown_N)
        now_N = chance_N * self._looks_R[row_N] < 1
        drawn.write(row_N, _one_each(row_N, now_N, order_N, self._size), delta, shown_N)


def _one_each(row_N: Tensor, wanted_N: Tensor, order_N: Tensor, size: int) -> Tensor:
    """Of the wanted ones of one row, the last in this order."""
    slot_N = torch.where(wanted_N, row_N, size)
    last_R = torch.full((size + 1,), -1, device=row_N.device, dtype=order_N.dtype)
    last_R.scatter_reduce_(0, slot_N, order_N, "amax")
    return wanted_N & (last_R[row_N] == order_N)
