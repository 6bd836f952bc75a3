"""A task whose defense was fitted again, and its stored flips held to their replay under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Perturbation
from saebench_recovery.model.plain import Conditions, PlainModel
from saebench_recovery.model.weights import WeightChange
from saebench_recovery.results.mismatch import differing
from saebench_recovery.runs.plan import Matchup
from saebench_recovery.runs.verify.evidence import StoredFlips
from saebench_recovery.runs.verify.flip import ReplayedFlip, narrowed
from saebench_recovery.runs.verify.passes import RememberedPasses
from saebench_recovery.runs.verify.replay import check_flip, missing_parts
from saebench_recovery.runs.verify.report import (
    ROUNDED_TOLERANCE,
    TOLERANCE,
    Findings,
    Place,
)
from saebench_recovery.runs.verify.search import searched_again
from saebench_recovery.schema import Facts, Record
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.undisturbed import Undisturbed
from saebench_recovery.scoring.valid_flips import evaluation_examples
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.phase import visible
from saebench_recovery.targets.target import Target


def settings_of(
    target: Target, matchup: Matchup, spec: RunSpec, facts: Facts
) -> Mapping[str, Setting]:
    """The setting of a task by its attack's name, of a suite each member's."""
    held = {
        Site.parse(site): target.dictionary(Site.parse(site)).defended(torch.tensor(chosen))
        for site, chosen in facts.held.items()
    }
    whole = Setting(target, matchup.task, matchup.defense, matchup.attack, spec, held or None)
    return {one.attack.name: one for one in whole.members}


@dataclass(frozen=True, eq=False)
class FittedTask:
    """A task and its fitted defense, the reference engine, and what is stored of them."""

    target: Target
    plain: PlainModel
    matchup: Matchup
    spec: RunSpec
    facts: Facts
    seen: Undisturbed

    def check(
        self, flips: StoredFlips, chosen: AbstractSet[str], findings: Findings
    ) -> tuple[str, ...]:
        """Replay the chosen flips of a chunk; their ids."""
        setting = self._settings.get(flips.chunk.attack)
        if setting is None:
            findings.add(differing("attack", flips.chunk.attack, None, task=flips.chunk.task))
            return ()
        wanted = [e for e, record in enumerate(flips.records) if record.id in chosen]
        for e in wanted:
            self._check_one(setting, flips, e, findings)
        return tuple(flips.records[e].id for e in wanted)

    def search_again(
        self, ids: AbstractSet[str], records: Sequence[Record], findings: Findings
    ) -> int:
        """Attack some flips once more and hold the task's records to that; how many flips."""
        again = self.seen.only(ids, learned=self.matchup.attack.learns)
        return searched_again(again, self.matchup.attack, self.spec, self.facts, records, findings)

    @cached_property
    def _settings(self) -> Mapping[str, Setting]:
        return settings_of(self.target, self.matchup, self.spec, self.facts)

    @cached_property
    def _passes(self) -> RememberedPasses:
        task, defended = self.matchup.task, tuple(self.matchup.defense.latents)
        pooled: tuple[Site, ...] = () if task.pool is None else (task.pool,)
        return RememberedPasses.of(self.plain, (*defended, *pooled))

    @cached_property
    def _examples(self) -> dict[str, Example]:
        (setting, *_) = self._settings.values()
        return {example.id: example for example in evaluation_examples(setting)}

    @cached_property
    def _kept(self) -> dict[WeightChange | None, float | None]:
        return {}

    def _retained(self, perturbation: Perturbation) -> float | None:
        """Retain examples that are right under other weights, of those that are when clean.

        The same for all flips of a chunk, so it is found once.
        """
        weights = perturbation.weights()
        if weights not in self._kept:
            defended = Conditions(self.matchup.defense, weights=weights)
            known = [e for e in self._known if _right(self.plain, e, defended)]
            self._kept[weights] = len(known) / len(self._known) if self._known else None
        return self._kept[weights]

    @cached_property
    def _known(self) -> list[Example]:
        examples = self.matchup.task.examples(self.target, "retain")
        retain = visible(examples, lambda e: str(e.prompt))
        return [e for e in retain if _right(self.plain, e, Conditions())]

    def _check_one(self, setting: Setting, flips: StoredFlips, e: int, findings: Findings) -> None:
        """Hold one record to its replay."""
        record = flips.records[e]
        tolerance = ROUNDED_TOLERANCE if setting.rounded else TOLERANCE
        place = Place(findings, record.task, record.id, tolerance)
        example = self._examples.get(record.id)
        if example is None:
            place.same("id", record.id, "no evaluation example")
            return
        parts = {name: narrowed(part, e) for name, part in flips.parts.items()}
        flip = ReplayedFlip(self._passes, setting, record, example, parts, self._retained)
        self._passes.forget()
        missing = missing_parts(flip)
        if missing:
            place.same("evidence", ", ".join(flips.parts), f"without {', '.join(missing)}")
            return
        try:
            check_flip(flip, place)
        except (UserError, ValueError, IndexError, KeyError) as error:
            # Evidence is foreign: a position outside the prompt, a token that does not exist.
            place.same("replay", "a perturbation that can be replayed", str(error))


@torch.no_grad()
def _right(plain: PlainModel, example: Example, conditions: Conditions) -> bool:
    """Whether the first candidate is the best one."""
    return int(plain.output(example, conditions).scores_EC.argmax()) == 0
