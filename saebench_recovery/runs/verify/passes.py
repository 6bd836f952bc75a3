"""The reference engine for one flip: passes that several questions ask for are made once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from saebench_recovery.base.sites import Site
from saebench_recovery.model.plain import UNDISTURBED, Conditions, Pass, PlainModel
from saebench_recovery.model.weights import WeightChange

Key = tuple[tuple[int, ...], int, int, str, WeightChange | None]


@dataclass(frozen=True, eq=False)
class RememberedPasses(PlainModel):
    """A plain model that keeps its passes, without gradients, until it is told to forget them.

    Scores, drift and norms of one perturbation read the same pass, and all perturbations of a flip
    the same clean and defended ones. `always` are sites that every pass is watched at.
    """

    always: tuple[Site, ...] = ()
    _passes: dict[Key, tuple[Conditions, Pass]] = field(default_factory=dict)
    _texts: dict[tuple[Key, int], tuple[Conditions, tuple[int, ...]]] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: PlainModel, always: tuple[Site, ...]) -> RememberedPasses:
        return cls(plain.model, plain.tokenizer, plain.saes, always)

    def forget(self) -> None:
        self._passes.clear()
        self._texts.clear()

    @torch.no_grad()
    def run(
        self,
        tokens: tuple[int, ...],
        conditions: Conditions = UNDISTURBED,
        watch: tuple[Site, ...] = (),
    ) -> Pass:
        key = _key(tokens, conditions)
        known = self._passes.get(key)
        if known is None or any(site not in known[1].after for site in watch):
            sites = tuple(dict.fromkeys((*self.always, *watch)))
            known = (conditions, super().run(tokens, conditions, sites))
            self._passes[key] = known
        return known[1]

    def continued(
        self,
        prompt: tuple[int, ...],
        new_tokens: int,
        conditions: Conditions = UNDISTURBED,
    ) -> tuple[int, ...]:
        key = (_key(prompt, conditions), new_tokens)
        if key not in self._texts:
            # A pass for each token of a text would fill the memory, and nothing asks for it again.
            plain = PlainModel(self.model, self.tokenizer, self.saes)
            text = plain.continued(prompt, new_tokens, conditions)
            self._texts[key] = (conditions, text)
        return self._texts[key][1]


def _key(tokens: tuple[int, ...], conditions: Conditions) -> Key:
    """What a pass depends on; whoever keeps it keeps the conditions, so that ids stay their own."""
    held: tuple[Any, Any] = (conditions.defense, conditions.delta)
    return (tokens, id(held[0]), id(held[1]), conditions.threat_model, conditions.weights)
