"""The deltas of some recovered flips beside their controls: split, and each part replayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.seeds import generators
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, ResidualDelta
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.parts import PARTS, TINY, Split, split
from saebench_recovery.runs.attribute.mediation import Held, later_sites, works_holding
from saebench_recovery.runs.attribute.reopened import Recovered
from saebench_recovery.schema import Source
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.attribution import Verdicts, replayed
from saebench_recovery.scoring.passes import CHUNK, whole_pass
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples


@dataclass(frozen=True)
class Replays:
    """One kind of deltas of some flips: the parts' lengths over the delta's, and all verdicts."""

    split: Split
    lengths: Mapping[str, Sequence[float]]
    verdicts: Verdicts


@dataclass(frozen=True, eq=False)
class ReplayedParts:
    """Recovered flips of one chunk under their fitted defense."""

    recovered: Recovered
    top: int

    @property
    def setting(self) -> Setting:
        return self.recovered.setting

    @cached_property
    def examples(self) -> list[Example]:
        known = {example.id: example for example in evaluation_examples(self.setting)}
        ids = [record.id for record in self.recovered.records]
        missing = [id for id in ids if id not in known]
        if missing:
            raise UserError(f"no evaluation example {missing[0]!r}: the data have changed")
        return [known[id] for id in ids]

    @cached_property
    def _defended(self) -> tuple[list[Example], list[bool], dict[Site, Tensor]]:
        """The wrong targets, whether they are shown already, and the rows that deltas act on."""
        setting, trace = self.setting, Trace()
        delta = self.of("headline")
        batch = setting.target.batch(self.examples)
        output = whole_pass(
            setting.active, setting.task, batch, trace=trace, watch=tuple(delta.values)
        )
        wrong = [
            setting.task.wrong_target(example, output, e) for e, example in enumerate(self.examples)
        ]
        C = batch.rows_per_example
        column_EP = batch.columns(delta.positions_EP)[::C].clamp_min(0)
        reached = trace.before if setting.spec.threat_model == "reclamp" else trace.after
        rows = {
            site: reached[site][::C].gather(
                1, column_EP[:, :, None].expand(-1, -1, reached[site].shape[-1])
            )
            for site in delta.values
        }
        shown = [self._works(wrong, None, slice(e, e + CHUNK)) for e in range(0, len(wrong), CHUNK)]
        return wrong, torch.cat(shown).tolist(), rows

    def of(self, part: str) -> ResidualDelta:
        """A part of the evidence, as wide as the longest of these flips needs."""
        delta = self.recovered.parts[part]
        assert isinstance(delta, ResidualDelta)
        device = self.setting.target.device
        # Those of the chunk that are not among these may act at more positions.
        used = int((delta.positions_EP >= 0).sum(1).amax())
        values = {site: v[:, :used].to(device) for site, v in delta.values.items()}
        return ResidualDelta(values, delta.positions_EP[:, :used].to(device))

    def sources(self) -> Iterator[tuple[Source, Replays]]:
        """The recovering deltas, random ones of their norm, and those to the wrong answer."""
        wrong = self._defended[0]
        headline = self.of("headline")
        yield "recovering", self._replays(self.examples, headline, self._smallest(wrong=False))
        unknown_E = torch.full_like(headline.norm_E(), torch.nan)
        yield "random", self._replays(self.examples, self._random(headline), unknown_E)
        injecting = self.of("headline_wrong")
        yield "wrong-target", self._replays(wrong, injecting, self._smallest(wrong=True))

    def _smallest(self, *, wrong: bool) -> Tensor:
        """The norm [E] of the smallest delta that works; NaN where none does."""
        side = "_wrong" if wrong else ""
        norms = [getattr(r, f"smallest_norm{side}") for r in self.recovered.records]
        none_E = torch.tensor([norm is None for norm in norms], device=self.setting.target.device)
        return self.of(f"smallest{side}").norm_E().masked_fill(none_E, torch.nan)

    def _random(self, like: ResidualDelta) -> ResidualDelta:
        """The scoring's own random control."""
        wrong, setting = self._defended[0], self.setting
        flips = [
            Flip(example, record.objective_clean, record.objective_defended, other)
            for example, record, other in zip(
                self.examples, self.recovered.records, wrong, strict=True
            )
        ]
        problem = posed(setting, flips, Meter())
        first = torch.arange(len(flips), device=setting.target.device) * problem.variants
        drawn = problem.rows(first + setting.head).random("control", like)
        assert isinstance(drawn, ResidualDelta)
        return drawn

    def _replays(
        self, asked: Sequence[Example], delta: ResidualDelta, smallest_E: Tensor
    ) -> Replays:
        defense, setting = self.setting.defense, self.setting
        parts = split(
            delta,
            self._defended[2],
            {site: setting.target.dictionary(site) for site in delta.values},
            {site: latents.features for site, latents in defense.latents.items()},
            self.top,
            list(generators(setting.spec.seed, "attribute", [e.id for e in asked])),
        )
        already_E = torch.zeros(len(asked), dtype=torch.bool)
        if asked is not self.examples:  # a wrong answer that is there anyway is not injected
            already_E = torch.tensor(self._defended[1])

        def works(what: ResidualDelta) -> Tensor:
            return self._all_work(asked, what) & ~already_E

        whole_E = delta.norm_E().clamp_min(TINY)
        lengths = {p: (parts.parts[p].norm_E() / whole_E).tolist() for p in PARTS}
        verdicts = replayed(works, parts, smallest_E)
        for held in get_args(Held):
            shown = self._holding(asked, delta, held)
            verdicts[f"later {held} held"] = [
                None if verdict is None else verdict and not already
                for verdict, already in zip(shown, already_E.tolist(), strict=True)
            ]
        return Replays(parts, lengths, verdicts)

    def _holding(
        self, asked: Sequence[Example], delta: ResidualDelta, held: Held
    ) -> list[bool | None]:
        """Verdicts with one thing held at later sites; None where there are none."""
        if not later_sites(self.setting, delta):
            return [None] * len(asked)
        shown: list[bool | None] = []
        for begin in range(0, len(asked), CHUNK):
            index = torch.arange(begin, min(begin + CHUNK, len(asked)))
            part = asked[begin : begin + CHUNK]
            shown += works_holding(self.setting, part, delta.rows(index), held).tolist()
        return shown

    def works(self, delta: ResidualDelta) -> Tensor:
        """Whether deltas of these flips recover them, bool [E]."""
        return self._all_work(self.examples, delta)

    def _all_work(self, asked: Sequence[Example], delta: ResidualDelta) -> Tensor:
        each = [
            self._works(asked, delta, slice(begin, begin + CHUNK))
            for begin in range(0, len(asked), CHUNK)
        ]
        return torch.cat(each).cpu()

    def _works(self, asked: Sequence[Example], delta: ResidualDelta | None, rows: slice) -> Tensor:
        """Whether the behaviour is shown, bool [E], from the tokens."""
        setting, examples = self.setting, list(asked[rows])
        part = None if delta is None else delta.rows(torch.arange(len(asked))[rows])
        batch = setting.target.batch(examples)
        output = whole_pass(setting.active, setting.task, batch, part, distribution=False)
        return setting.task.behaviour(output)
