"""Rule 14 for a detector: what it says is a function of the residual that it is shown.

It is asked of real residuals again, in another order, beside others and once more when the run is
over. By how much an answer may differ is what residuals moved by as much as rounding show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense
from saebench_recovery.schema import Finding
from saebench_recovery.scoring.check.catalogue import finding, refusal
from saebench_recovery.scoring.monitor import nudged

ROUNDING = 1e-5  # of the largest suspicion
REPEATS, JITTERS = 8, 3


@dataclass(frozen=True)
class AlarmCheck:
    """A fitted defense's detector at one site, on some prompts' residuals [T, D]."""

    defense: Defense
    site: Site
    prompts: Sequence[Tensor]
    entering: bool
    first: list[Tensor] = field(default_factory=list)  # suspicion [T] of each

    def findings(self) -> list[Finding]:
        """What is wrong with it."""
        try:
            self.first.extend(self._alone())
            allowed = self._sensitivity()
            again = [1, -1] * (REPEATS // 2)
            if not all(self._same(self._alone(order), allowed) for order in again):
                return [self._found("stateful-defense", "says something else than it did before")]
            if not all(self._same(self._beside(order), allowed) for order in (1, -1)):
                return [self._found("depends-on-batch", "says something else beside other rows")]
        except UserError as error:
            return [refusal(error)]
        return []

    def afterwards(self) -> list[Finding]:
        """Asked again, of residuals that differ by rounding: it may know those that it has seen."""
        if not self.first or self._same(self._near(), self._sensitivity()):
            return []
        return [self._found("stateful-defense", "is not what it was before the run")]

    def _alone(self, order: int = 1) -> list[Tensor]:
        """Of each prompt by itself, in its place whatever the order of asking."""
        return [self._asked(resid_TD[None])[0] for resid_TD in self.prompts[::order]][::order]

    def _beside(self, order: int) -> list[Tensor]:
        rows = pad_sequence(list(self.prompts[::order]), batch_first=True)
        asked = zip(self._asked(rows), self.prompts[::order], strict=True)
        return [row_T[: len(resid_TD)] for row_T, resid_TD in asked][::order]

    def _near(self) -> list[Tensor]:
        drawn = torch.Generator().manual_seed(len(self.prompts))
        return [self._asked(nudged(resid_TD, drawn)[None])[0] for resid_TD in self.prompts]

    def _sensitivity(self) -> list[Tensor]:
        """How far each answer may be from the first one [T]."""
        drawn = torch.Generator().manual_seed(0)
        allowed = []
        for resid_TD, first_T in zip(self.prompts, self.first, strict=True):
            near = [self._asked(nudged(resid_TD, drawn)[None])[0] for _ in range(JITTERS)]
            # Of each other, not of the first: that may be what it no longer says.
            spread_T = torch.stack(near).amax(0) - torch.stack(near).amin(0)
            allowed.append(ROUNDING * (1 + first_T.abs().max()) + 4 * spread_T)
        return allowed

    def _same(self, answers: Sequence[Tensor], allowed: Sequence[Tensor]) -> bool:
        triples: Iterator[tuple[Tensor, Tensor, Tensor]] = zip(
            answers, self.first, allowed, strict=True
        )
        return not any(((now - was).abs() > most).any() for now, was, most in triples)

    @torch.no_grad()
    def _asked(self, resid_BTD: Tensor) -> Tensor:
        found = self.defense.alarm(self.site, resid_BTD.clone(), entering=self.entering)
        if not isinstance(found, Tensor) or found.shape != resid_BTD.shape[:2]:
            wanted = tuple(resid_BTD.shape[:2])
            raise UserError(f"{self.defense.title}: alarm must return a tensor [B, T] {wanted}")
        return found.float()

    def _found(self, name: str, what: str) -> Finding:
        return finding(name, f"{self.defense.title}: its alarm {what} (at {self.site})")
