"""Examples as tensors: a left-padded prefix, and a right-padded window of what is run.

The window starts at each example's first perturbed position, so that all examples of a batch
start in the same column whatever their length, and every row of an example shares its prefix.
A whole pass is the window that starts at position 0, with an empty prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.model.examples import Example
from saebench_recovery.model.packing import Begun, Packing
from saebench_recovery.model.vocabulary_sample import Samples


@dataclass(frozen=True)
class Prefix:
    """Tokens before each example's window, left-padded: [E, P]."""

    ids_EP: Tensor
    mask_EP: Tensor
    position_EP: Tensor


@dataclass(frozen=True)
class Batch:
    """Windows of E examples in R = E * C' rows.

    Single-token candidates are all read from one row (C' = 1). Where an example has longer ones,
    every candidate takes a row, appended to the prompt (teacher forcing); `length_R` counts its
    tokens, and `settled_R` sums the log-probabilities of those that no pass over the window can
    change. One whose candidates are single tokens is laid out beside it as it is alone. No score
    is read of the last `unread` columns, which only end an answer. Where rows have `begun`, the
    prefix holds their first tokens, and they are run packed. Answers' scores are rough where
    `samples` of the vocabulary stand for it.
    """

    examples: tuple[Example, ...]
    ids_RQ: Tensor
    mask_RQ: Tensor  # False on padding
    position_RQ: Tensor  # absolute token positions
    readout_E: Tensor  # column of the last prompt token
    candidate_EC: Tensor  # candidate ids, -1 where there is none; first tokens if longer
    forced_RQ: Tensor | None  # token id that column should predict, -1 elsewhere
    prefix: Prefix
    length_R: Tensor
    settled_R: Tensor
    apart: bool = False  # every row is run by itself, so that it has a gradient of its own
    unread: int = 0
    begun: Begun | None = None
    samples: Samples | None = None

    @property
    def rows_per_example(self) -> int:
        return self.ids_RQ.shape[0] // self.readout_E.shape[0]

    @cached_property
    def one_token(self) -> tuple[bool, ...]:
        """Of each example, whether all of its candidates are one token."""
        return tuple(e.longest_answer <= 1 for e in self.examples)

    @cached_property
    def answers(self) -> tuple[Tensor, Tensor]:
        """The different candidate tokens [K], and where among them each [E, C] is."""
        ids_K, place_EC = torch.unique(self.candidate_EC.clamp(min=0), return_inverse=True)
        return ids_K, place_EC

    @cached_property
    def packing(self) -> Packing | None:
        """How the rows are run; None as they are."""
        if self.begun is None and (self.forced_RQ is None or self.apart):
            return None
        forced_RQ = torch.full_like(self.ids_RQ, -1) if self.forced_RQ is None else self.forced_RQ
        return Packing.of(self.ids_RQ, self.mask_RQ, forced_RQ, self.rows_per_example, self.begun)

    @property
    def state_RQ(self) -> Tensor:
        """The place, row by row, of a token whose state each [R, Q] has."""
        R, Q = self.ids_RQ.shape
        place_RQ = torch.arange(R * Q, device=self.ids_RQ.device).view(R, Q)
        return place_RQ if self.packing is None else self.packing.first(place_RQ)

    def columns(self, position_EP: Tensor) -> Tensor:
        """Window column [R, P] of absolute positions, -1 where there is none."""
        position_RP = position_EP.repeat_interleave(self.rows_per_example, 0)
        column_RP = position_RP - self.position_RQ[:, :1]
        return torch.where(position_RP < 0, -1, column_RP)

    def at_columns(self, column_RP: Tensor) -> Tensor:
        """Bool [R, Q]: the columns listed in `column_RP`."""
        wide = column_RP[:, :, None] == torch.arange(
            self.ids_RQ.shape[1], device=self.ids_RQ.device
        )
        return wide.any(1)

    def rows(self, index_E: Tensor) -> Batch:
        """The windows of some examples (their prefix stays with whoever cached it)."""
        C = self.rows_per_example
        index_R = (index_E[:, None] * C + torch.arange(C, device=index_E.device)).flatten()
        return Batch(
            tuple(self.examples[i] for i in index_E.tolist()),
            self.ids_RQ[index_R],
            self.mask_RQ[index_R],
            self.position_RQ[index_R],
            self.readout_E[index_E],
            self.candidate_EC[index_E],
            None if self.forced_RQ is None else self.forced_RQ[index_R],
            self.prefix,
            self.length_R[index_R],
            self.settled_R[index_R],
            self.apart,
            self.unread,
        )

    def first_rows(self) -> Batch:
        """Each example's first row alone: what its first candidate is read from."""
        C = self.rows_per_example
        return replace(
            self,
            ids_RQ=self.ids_RQ[::C],
            mask_RQ=self.mask_RQ[::C],
            position_RQ=self.position_RQ[::C],
            candidate_EC=self.candidate_EC[:, :1],
            forced_RQ=None if self.forced_RQ is None else self.forced_RQ[::C],
            length_R=self.length_R[::C],
            settled_R=self.settled_R[::C],
        )

    def with_first_tokens(self, ids_EK: Tensor) -> Batch:
        """The same windows with other tokens at their start."""
        ids_RK = ids_EK.repeat_interleave(self.rows_per_example, 0)
        return replace(self, ids_RQ=torch.cat([ids_RK, self.ids_RQ[:, ids_RK.shape[1] :]], 1))

    def before(self, count: int, settled_R: Tensor) -> Batch:
        """The windows' first columns; what the others predict is settled."""
        cut = self.ids_RQ.shape[1] - count
        return replace(
            self._cut(slice(count)),
            settled_R=self.settled_R + settled_R,
            unread=max(0, self.unread - cut),
        )

    def read(self) -> Batch:
        """The windows without the columns that no score is read of."""
        return replace(self._cut(slice(self.ids_RQ.shape[1] - self.unread)), unread=0)

    def _cut(self, columns: slice) -> Batch:
        return replace(
            self,
            ids_RQ=self.ids_RQ[:, columns],
            mask_RQ=self.mask_RQ[:, columns],
            position_RQ=self.position_RQ[:, columns],
            forced_RQ=None if self.forced_RQ is None else self.forced_RQ[:, columns],
        )


def batch(
    examples: Sequence[Example], first: Sequence[int] | None = None, device: str = "cpu"
) -> Batch:
    """Lay out examples; window i starts at position `first[i]` (default 0: the whole pass).

    Raises:
        UserError: an example has no answer.
    """
    start = list(first) if first is not None else [0] * len(examples)
    width = max(len(e.candidates) for e in examples)
    forced = any(e.longest_answer > 1 for e in examples)
    windows: list[Sequence[int]] = []
    targets: list[Sequence[int]] = []
    offsets: list[int] = []
    for example, begin in zip(examples, start, strict=True):
        if not 0 <= begin < len(example.prompt):
            raise ValueError(f"{example.id}: window start {begin} lies outside the prompt")
        if not example.candidates:
            raise UserError(f"example {example.id!r} has no answer to compare")
        # Absent candidates repeat the first one, so that every example has as many rows.
        answers = [
            *example.candidates,
            *[example.candidates[0]] * (width - len(example.candidates)),
        ]
        if example.longest_answer <= 1:
            answers = [()] * width
        for answer in answers if forced else [()]:
            window = (*example.prompt[begin:], *answer)
            windows.append(window)
            offsets.append(begin)
            ahead = [-1] * (len(window) - len(answer) - 1)
            targets.append([*ahead, *answer, -1] if answer else [])
    ids_RQ = _padded(windows, 0)
    R, Q = ids_RQ.shape
    mask_RQ = torch.arange(Q) < torch.tensor([len(window) for window in windows])[:, None]
    position_RQ = torch.tensor(offsets)[:, None] + torch.arange(Q)
    forced_RQ = _padded(targets, -1, Q) if forced else torch.full((R, Q), -1)
    length = torch.tensor([len(e.prompt) for e in examples])
    readout_E = length - torch.tensor(start) - 1
    # A prompt whose answers are single tokens may be longer than another with its answers.
    last = int(torch.cat([readout_E, (forced_RQ >= 0).nonzero()[:, 1]]).max())
    made = Batch(
        tuple(examples),
        ids_RQ,
        mask_RQ,
        position_RQ,
        readout_E,
        _padded([[c[0] for c in e.candidates] for e in examples], -1),
        forced_RQ if forced else None,
        _prefix(examples, start),
        (forced_RQ >= 0).sum(1).clamp(min=1),
        torch.zeros(len(windows)),
        unread=ids_RQ.shape[1] - 1 - last,
    )
    return _to(made, device)


def _padded(rows: Sequence[Sequence[int]], empty: int, width: int = 0) -> Tensor:
    """Numbers [R, Q] of rows of any length; made at once, as a tensor for each takes far longer."""
    Q = max(width, *(len(row) for row in rows))
    return torch.tensor([[*row, *[empty] * (Q - len(row))] for row in rows], dtype=torch.long)


def tokens_only(ids_RQ: Tensor, mask_RQ: Tensor, position_RQ: Tensor) -> Batch:
    """Rows of tokens that nothing is read from, such as a prefix or a token just generated."""
    none = torch.empty(ids_RQ.shape[0], 0, dtype=torch.long, device=ids_RQ.device)
    last_R = torch.full_like(ids_RQ[:, 0], ids_RQ.shape[1] - 1)
    empty = Prefix(none, none, none)
    return Batch((), ids_RQ, mask_RQ, position_RQ, last_R, none, None, empty, none, none)


def _prefix(examples: Sequence[Example], start: Sequence[int]) -> Prefix:
    P = max(start)
    before = [
        [*[0] * (P - begin), *e.prompt[:begin]] for e, begin in zip(examples, start, strict=True)
    ]
    ids_EP = torch.tensor(before, dtype=torch.long)
    length_E = torch.tensor(start)
    position_EP = torch.arange(ids_EP.shape[1]) - (ids_EP.shape[1] - length_E)[:, None]
    return Prefix(ids_EP, position_EP >= 0, position_EP.clamp(min=0))


def _to(made: Batch, device: str) -> Batch:
    def moved(part: Batch | Prefix) -> dict[str, Any]:
        held = {field.name: getattr(part, field.name) for field in fields(part)}
        return {name: t.to(device) for name, t in held.items() if isinstance(t, Tensor)}

    return replace(made, **moved(made), prefix=replace(made.prefix, **moved(made.prefix)))
