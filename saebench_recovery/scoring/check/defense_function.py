"""Rule 14: a defense is a function of each token's residual, and of nothing else.

What it returns is compared on real residuals: called twice, in another batch, on part of a prompt,
one token at a time, with and without gradients. Two results are the same if they differ by no more
than rounding does: matrix products of other shapes add up in another order, and a latent at its
threshold may then go on or off. Residuals moved by as much as rounding show how far that reaches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense
from saebench_recovery.model.intervened import fault_of
from saebench_recovery.schema import Finding
from saebench_recovery.scoring.check.catalogue import finding, refusal

ROUNDING = 1e-5  # of a token's norm; float32 products of a few thousand terms stay below it
JITTERS, REPEATS = 3, 8
# Rows, up to every budget of over a hundred flips, towards both answers.
MANY = tuple(2**power for power in range(3, 12))
WINDOWS = (2, 3, 4, 8)  # tokens, beside all lengths of one prompt

Part = tuple[int, slice, Tensor]
"""Tokens of a prompt, by its number, and what was returned for them [T, D]."""


@dataclass(frozen=True)
class FunctionCheck:
    """A fitted defense at one site, on some prompts' residuals [T, D].

    What it first returned is kept, so that it can be asked again when a run is over.
    """

    defense: Defense
    site: Site
    prompts: Sequence[Tensor]
    first: list[Tensor] = field(default_factory=list)

    def findings(self) -> list[Finding]:
        """What is wrong; the rest is not asked where the first answers mean nothing."""
        try:
            return list(self._returned()) or list(self._repeated()) or list(self._elsewhere())
        except UserError as error:
            return [refusal(error)]

    def afterwards(self) -> list[Finding]:
        """Asked again, whether it still is what it was."""
        if not self.first or self._same(self._whole("off")):
            return []
        return [self._found("stateful-defense", "is not what it was before the run")]

    # --- what is asked ------------------------------------------------------------------------

    def _returned(self) -> Iterator[Finding]:
        for resid_TD in self.prompts:
            given = resid_TD[None].clone()
            with torch.no_grad():
                returned = self.defense.intervene(self.site, given)
            fault = fault_of(returned, given)
            if fault is not None:
                yield finding(fault.name, f"{self.defense.title}: intervene {fault.problem}")
                return
            if not torch.isfinite(returned).all():
                yield self._found("not-finite", "returns NaN or infinity for evaluation prompts")
                return
            if not torch.equal(given[0], resid_TD):
                yield self._found("writes-to-input", "changes the residual that it is given")
                return
            self.first.append(returned[0].clone())

    def _repeated(self) -> Iterator[Finding]:
        """Called again, in this order and the other way round."""
        before = _numbers(self.defense)
        same = all(self._same(self._whole("off")) for _ in range(REPEATS))
        same = same and self._same(self._whole("off", order=-1))
        moved = sorted(name for name, n in _numbers(self.defense).items() if before.get(name) != n)
        if not same:
            if _equal(self._seeded(), self._seeded()) and not _equal(self._now(), self._now()):
                yield self._found("random-defense", "returns something else at each call")
            else:
                yield self._found("stateful-defense", "returns something else than it did before")
        elif moved:
            yield self._found("stateful-defense", f"changes its {', '.join(moved)} at each call")

    def _elsewhere(self) -> Iterator[Finding]:
        allowed = [self._sensitivity(*pair) for pair in zip(self.prompts, self.first, strict=True)]
        for name, when, parts in self._views():
            if not self._same(parts, allowed):
                yield self._found(name, f"returns something else {when}")
                return  # what follows builds on it

    def _views(self) -> Iterator[tuple[str, str, Iterator[Part]]]:
        grad, window, length = "depends-on-gradient-mode", "depends-on-window", "depends-on-length"
        yield grad, "with gradients enabled", self._whole("on")
        yield grad, "for a residual that requires a gradient", self._whole("leaf")
        yield grad, "in the middle of a graph", self._whole("inner")
        for size in WINDOWS[::-1]:
            yield window, f"for the last {size} tokens of a prompt alone", self._ends(size)
        yield window, "for parts of a prompt", self._lengths()
        yield length, "for a token alone, as in generation", self._ends(1)
        yield "depends-on-batch", "with the same row many times", self._copies()
        yield "depends-on-batch", "in a batch as large as a search's", self._many()
        yield "depends-on-batch", "with other rows in the batch", self._batched()
        yield window, "where padding follows", self._padded()
        yield length, "for tokens alone, each in a row of the batch", self._tokens()

    # --- how ----------------------------------------------------------------------------------

    def _whole(self, mode: str, order: int = 1) -> Iterator[Part]:
        for i in range(len(self.prompts))[::order]:
            yield i, slice(None), self._called(self.prompts[i][None], mode)[0]

    def _batched(self) -> Iterator[Part]:
        shortest = min(map(len, self.prompts))
        rows = torch.stack([resid_TD[:shortest] for resid_TD in self.prompts])
        for order in (range(len(rows)), range(len(rows) - 1, -1, -1)):
            returned = self._called(rows[list(order)])
            yield from ((i, slice(shortest), returned[row]) for row, i in enumerate(order))

    def _copies(self) -> Iterator[Part]:
        returned = self._called(self.prompts[0].expand(6, -1, -1))
        yield from ((0, slice(None), row) for row in returned)

    def _many(self) -> Iterator[Part]:
        """A token in as many rows as searches run at once; of each size the row that differs most.

        A search drops the rows that are done, and so it runs batches of many sizes.
        """
        (first_D,) = self.first[0][-1:]
        for count in MANY:
            returned_BD = self._called(self.prompts[0][-1:].expand(count, 1, -1))[:, 0]
            furthest = int((returned_BD - first_D).norm(dim=1).argmax())
            yield 0, slice(-1, None), returned_BD[furthest][None]

    def _padded(self) -> Iterator[Part]:
        behind = (functional.pad(resid_TD, (0, 0, 0, 2)) for resid_TD in self.prompts)
        longer = pad_sequence(list(behind), batch_first=True)
        for i, row in enumerate(self._called(longer)):
            yield i, slice(None), row[: len(self.prompts[i])]

    def _ends(self, size: int) -> Iterator[Part]:
        for i, resid_TD in enumerate(self.prompts):
            if len(resid_TD) > size:
                yield i, slice(-size, None), self._called(resid_TD[None, -size:])[0]

    def _lengths(self) -> Iterator[Part]:
        whole = self.prompts[0]
        for cut in range(2, len(whole) - 1):
            for part in (slice(cut), slice(cut, None)):
                yield 0, part, self._called(whole[None, part])[0]

    def _tokens(self) -> Iterator[Part]:
        for i, resid_TD in enumerate(self.prompts):
            yield i, slice(None), self._called(resid_TD[:, None])[:, 0]

    def _called(self, resid_BTD: Tensor, mode: str = "off") -> Tensor:
        """What is returned for a copy, in one of the ways in which the engine calls it."""
        given = resid_BTD.clone()
        with torch.set_grad_enabled(mode != "off"):
            if mode in ("leaf", "inner"):
                given.requires_grad_()
            if mode == "inner":
                given = given + 0
            returned = self.defense.intervene(self.site, given)
        fault = fault_of(returned, resid_BTD)
        if fault is not None:
            raise UserError(f"{self.defense.title}: intervene {fault.problem}")
        return returned.detach()

    def _seeded(self) -> list[Tensor]:
        """What is returned right after the global generators were seeded."""
        state = random.getstate()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            random.seed(0)
            found = self._now()
        random.setstate(state)
        return found

    def _now(self) -> list[Tensor]:
        return [returned for _, _, returned in self._whole("off")]

    def _sensitivity(self, resid_TD: Tensor, first_TD: Tensor) -> Tensor:
        """How far [T] the result moves where the residual does by as much as rounding."""
        drawn = torch.Generator().manual_seed(0)
        furthest_T = torch.zeros_like(resid_TD[:, 0])
        for _ in range(JITTERS):
            noise_TD = torch.randn(resid_TD.shape, generator=drawn).to(resid_TD)
            moved_TD = resid_TD + noise_TD * resid_TD.abs().mean(1, keepdim=True) * 1e-6
            gap_T = (self._called(moved_TD[None])[0] - first_TD).norm(dim=1)
            furthest_T = torch.maximum(furthest_T, gap_T)
        return furthest_T

    def _same(self, parts: Iterator[Part], allowed: Sequence[Tensor] = ()) -> bool:
        for i, tokens, returned_TD in parts:
            first_TD = self.first[i][tokens]
            both = (first_TD.norm(dim=1), self.prompts[i][tokens].norm(dim=1))
            most_T = ROUNDING * torch.maximum(*both)
            if allowed:
                most_T = most_T + 2 * allowed[i][tokens]
            if ((returned_TD - first_TD).norm(dim=1) > most_T).any():
                return False
        return True

    def _found(self, name: str, what: str) -> Finding:
        return finding(name, f"{self.defense.title} {what} (at {self.site})")


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _numbers(defense: Defense) -> dict[str, object]:
    """Attributes that count or switch something."""
    held = {**vars(type(defense)), **vars(defense)}
    return {n: v for n, v in held.items() if isinstance(v, bool | int | float | str)}
