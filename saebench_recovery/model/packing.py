"""One row for each example: what its answers have in common is run once.

Where answers are teacher-forced, every candidate takes a row of a batch. These rows repeat the
prompt and what answers begin with alike, and padding fills the shorter ones. Packed, an example is
one row of its different tokens, those of the first candidate before the others', and each attends
to what the model's own mask lets it see in the row that it is from. Edits, and whoever reads the
pass, find all rows as they were laid out.

Rows that begin like one whose keys and values were recorded run only what follows, two examples in
one packed row: a long rest beside a short one, so that no padding is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.masking_utils import eager_mask

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Begun:
    """How many first tokens of each row [R] stand in the prefix, which ends with `columns` of them.

    So many neighbouring examples are run `together`.
    """

    count_R: Tensor
    columns: int
    together: int


@dataclass(frozen=True)
class Packing:
    """E packed rows of K tokens, from R = E * C rows of Q.

    `token_EK` is where each packed token stands among the C * Q of its example, `place_EX` the
    packed token that stands for each of those, and `known_EX` whether one does: of the candidates
    behind the first, nothing is read behind the last token that predicts something. Nor does one
    stand for what rows have `begun` with.
    """

    rows: int
    columns: int
    token_EK: Tensor
    place_EX: Tensor
    known_EX: Tensor
    begun: Begun | None = None

    @classmethod
    def of(
        cls,
        ids_RQ: Tensor,
        mask_RQ: Tensor,
        forced_RQ: Tensor,
        candidates: int,
        begun: Begun | None = None,
    ) -> Packing:
        """That of rows in groups of so many candidates, each with the token it should predict."""
        R, Q = ids_RQ.shape
        E, C = R // candidates, candidates
        column_Q = torch.arange(Q, device=ids_RQ.device)
        ids_ECQ = ids_RQ.masked_fill(~mask_RQ, -1).view(E, C, Q)
        same_ECCQ = (ids_ECQ[:, :, None] == ids_ECQ[:, None]).cummin(-1).values
        first_ECQ = same_ECCQ.int().argmax(2)  # the first candidate that has begun alike
        token_EX = (first_ECQ * Q + column_Q).flatten(1)
        last_R1 = torch.where(forced_RQ >= 0, column_Q, -1).amax(1, keepdim=True)
        read_ECQ = ((column_Q <= last_R1) & mask_RQ).view(E, C, Q)
        read_ECQ[:, 0] = mask_RQ.view(E, C, Q)[:, 0]
        chosen_EX = torch.zeros_like(token_EX).scatter_add_(1, token_EX, read_ECQ.flatten(1).long())
        chosen_EX = chosen_EX > 0
        if begun is not None:
            chosen_EX &= (column_Q >= begun.count_R[:, None]).view(E, C * Q)
            token_EX, chosen_EX = _joined(token_EX, chosen_EX, begun.together)
        count_E1 = chosen_EX.sum(1, keepdim=True)
        order_EX = chosen_EX.int().argsort(dim=1, descending=True, stable=True)
        K = int(count_E1.max())
        # A row with fewer different tokens is filled up with its first one.
        padding_EK = torch.arange(K, device=ids_RQ.device) >= count_E1
        token_EK = order_EX[:, :K].masked_fill(padding_EK, 0)
        place_EX = (chosen_EX.long().cumsum(1) - 1).gather(1, token_EX)
        known_EX = chosen_EX.gather(1, token_EX)
        return cls(R, Q, token_EK, place_EX.masked_fill(~known_EX, 0), known_EX, begun)

    @property
    def width(self) -> int:
        """Tokens of a packed row."""
        return self.token_EK.shape[1]

    def packed(self, values_RQ: Tensor) -> Tensor:
        """The packed rows [E, K, ...] of values [R, Q, ...]."""
        return self._picked(
            values_RQ.reshape(len(self.token_EK), -1, *values_RQ.shape[2:]), self.token_EK
        )

    def unpacked(self, values_EK: Tensor) -> Tensor:
        """The rows [R, Q, ...] of packed values [E, K, ...]; any value where there is none."""
        rows = self._picked(values_EK, self.place_EX)
        return rows.view(self.rows, self.columns, *values_EK.shape[2:])

    def first(self, values_RQ: Tensor) -> Tensor:
        """For each of the rows' tokens, the value [R, Q] of the one that is run for it."""
        return self.unpacked(self.packed(values_RQ))

    def _picked(self, values: Tensor, index: Tensor) -> Tensor:
        """Of each example the values [E, ...] at some places of its own."""
        example_E1 = torch.arange(len(index), device=index.device)[:, None]
        return values[example_E1, index]

    def around(self, edit: Edit) -> Edit:
        """The edit of packed rows that does to each token what `edit` does in the rows."""
        return lambda resid_EKD: self.packed(edit(self.unpacked(resid_EKD)))

    def mask(self, mask_R1QT: Tensor) -> Tensor:
        """The packed rows' attention mask [E, 1, K, P + K], from that of the rows [R, 1, Q, P + Q].

        A token sees what stands for the tokens that it sees in its own row. Where rows have begun,
        the recorded tokens lie between the two parts.
        """
        E, K = self.token_EK.shape
        C, Q = self.rows // E, self.columns
        example_E1 = torch.arange(E, device=mask_R1QT.device)[:, None]
        row_EK, column_EK = self.token_EK // Q, self.token_EK % Q
        whole_EK = example_E1 * C + row_EK
        own_EKT = mask_R1QT[whole_EK, 0, column_EK]
        before_EKP, own_EKQ = own_EKT.split_with_sizes([own_EKT.shape[2] - Q, Q], 2)
        # What nothing stands for goes into a column behind the last.
        place_EX = self.place_EX.masked_fill(~self.known_EX, K)
        place_EKQ = place_EX.view(E, C, Q)[example_E1, row_EK]
        unseen = torch.finfo(mask_R1QT.dtype).min
        seen_EKK = own_EKQ.new_full((E, K, K + 1), unseen).scatter_(2, place_EKQ, own_EKQ)
        parts = [before_EKP, seen_EKK[:, :, :K]]
        if self.begun is not None:
            recorded_EKB = own_EKQ[:, :, : self.begun.columns]
            column_B = torch.arange(self.begun.columns, device=recorded_EKB.device)
            own_EKB = column_B >= self.begun.count_R[whole_EK][:, :, None]
            parts.insert(1, recorded_EKB.masked_fill(own_EKB, unseen))
        return torch.cat(parts, 2)[:, None]


def _joined(token_EX: Tensor, chosen_EX: Tensor, together: int) -> tuple[Tensor, Tensor]:
    """The tokens of neighbouring examples as those of one."""
    X = token_EX.shape[1]
    offset_E1 = torch.arange(len(token_EX), device=token_EX.device)[:, None] % together * X
    shape = (-1, together * X)
    return (token_EX + offset_E1).view(shape), chosen_EX.view(shape)


_active: ContextVar[tuple[Packing, Tensor] | None] = ContextVar("packing", default=None)


@contextmanager
def masked(packing: Packing, mask_RT: Tensor) -> Iterator[None]:
    """Let a pass over packed rows attend as the rows would under a mask over prefix and window."""
    token = _active.set((packing, mask_RT))
    try:
        yield
    finally:
        _active.reset(token)


def attention_mask(**asked: Any) -> Tensor:
    """What transformers asks for at each pass, as its own `eager_mask` gives it."""
    active = _active.get()
    if active is None:
        return cast(Tensor, eager_mask(**asked))
    packing, mask_RT = active
    rows, columns, length = packing.rows, packing.columns, mask_RT.shape[1]
    laid_out = {
        "batch_size": rows,
        "q_length": columns,
        "kv_length": length,
        "q_offset": length - columns,
        "attention_mask": mask_RT,
    }
    return packing.mask(eager_mask(**{**asked, **laid_out}))
