"""All chosen flips of a run, each under the task, defense and attack that it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Perturbation
from saebench_recovery.model.plain import Conditions, PlainModel
from saebench_recovery.model.weights import WeightChange
from saebench_recovery.results.consistency import StoredRun
from saebench_recovery.results.mismatch import differing
from saebench_recovery.runs.plan import Matchup
from saebench_recovery.runs.verify.evidence import StoredFlips, read_flips
from saebench_recovery.runs.verify.flip import ReplayedFlip, narrowed
from saebench_recovery.runs.verify.passes import RememberedPasses
from saebench_recovery.runs.verify.replay import check_flip, missing_parts
from saebench_recovery.runs.verify.report import (
    ROUNDED_TOLERANCE,
    TOLERANCE,
    Findings,
    Place,
)
from saebench_recovery.schema import Facts
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.phase import visible
from saebench_recovery.targets.plain import load_plain
from saebench_recovery.targets.target import Target


def replayed(
    target: Target,
    fitted: Mapping[str, Matchup],
    stored: StoredRun,
    chosen: Mapping[str, AbstractSet[str]],
    findings: Findings,
    progress: Progress,
) -> int:
    """Replay the chosen flips of the fitted tasks; how many there were.

    What cannot be replayed at all is among the findings.
    """
    sites = {site for matchup in fitted.values() for site in matchup.defense.latents}
    try:
        plain = load_plain(target.preset, sorted(sites), str(target.device))
    except UserError as error:
        findings.could_not_check("replay", str(error))
        return 0
    spec = RunSpec.model_validate(
        {k: v for k, v in stored.result.spec.items() if k in RunSpec.model_fields}
    )
    total, done = sum(map(len, chosen.values())), set[tuple[str, str]]()
    for flips in read_flips(stored, findings):
        matchup = fitted.get(flips.chunk.task)
        if matchup is None:
            continue
        setting = setting_of(target, matchup, spec, stored.facts[flips.chunk.task], flips)
        if setting is None:
            findings.add(differing("attack", flips.chunk.attack, None, task=flips.chunk.task))
            continue
        group = _Group(plain, setting, flips)
        for e in group.wanted(chosen[flips.chunk.task]):
            progress("replaying", len(done), total)
            group.check(e, findings)
            done.add((flips.chunk.task, flips.records[e].id))
    return len(done)


def setting_of(
    target: Target, matchup: Matchup, spec: RunSpec, facts: Facts, flips: StoredFlips
) -> Setting | None:
    """The setting of a chunk, of a suite the member's; None if there is no such attack."""
    held = {
        Site.parse(site): target.dictionary(Site.parse(site)).defended(torch.tensor(chosen))
        for site, chosen in facts.held.items()
    }
    whole = Setting(target, matchup.task, matchup.defense, matchup.attack, spec, held or None)
    named = [one for one in whole.members if one.attack.name == flips.chunk.attack]
    return named[0] if named else None


@dataclass(frozen=True, eq=False)
class _Group:
    """The flips of one chunk, which are of one task and one attack."""

    plain: PlainModel
    setting: Setting
    flips: StoredFlips

    @cached_property
    def passes(self) -> RememberedPasses:
        task, defended = self.setting.task, tuple(self.setting.defense.latents)
        pooled: tuple[Site, ...] = () if task.pool is None else (task.pool,)
        return RememberedPasses.of(self.plain, (*defended, *pooled))

    @cached_property
    def examples(self) -> dict[str, Example]:
        return {example.id: example for example in evaluation_examples(self.setting)}

    def wanted(self, ids: AbstractSet[str]) -> Iterator[int]:
        for e, record in enumerate(self.flips.records):
            if record.id in ids:
                yield e

    @cached_property
    def _kept(self) -> dict[WeightChange | None, float | None]:
        return {}

    def _retained(self, perturbation: Perturbation) -> float | None:
        """Retain examples that are right under other weights, of those that are when clean.

        The same for all flips of a chunk, so it is found once.
        """
        weights = perturbation.weights()
        if weights not in self._kept:
            defended = Conditions(self.setting.defense, weights=weights)
            known = [e for e in self._known if _right(self.plain, e, defended)]
            self._kept[weights] = len(known) / len(self._known) if self._known else None
        return self._kept[weights]

    @cached_property
    def _known(self) -> list[Example]:
        examples = self.setting.task.examples(self.setting.target, "retain")
        retain = visible(examples, lambda e: str(e.prompt))
        return [e for e in retain if _right(self.plain, e, Conditions())]

    def check(self, e: int, findings: Findings) -> None:
        """Hold one record to its replay."""
        record = self.flips.records[e]
        tolerance = ROUNDED_TOLERANCE if self.setting.rounded else TOLERANCE
        place = Place(findings, record.task, record.id, tolerance)
        example = self.examples.get(record.id)
        if example is None:
            place.same("id", record.id, "no evaluation example")
            return
        flip = ReplayedFlip(
            self.passes,
            self.setting,
            record,
            example,
            {name: narrowed(part, e) for name, part in self.flips.parts.items()},
            self._retained,
        )
        self.passes.forget()
        missing = missing_parts(flip)
        if missing:
            place.same("evidence", ", ".join(self.flips.parts), f"without {', '.join(missing)}")
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
