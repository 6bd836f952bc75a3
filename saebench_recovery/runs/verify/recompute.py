"""A stored run computed again in pieces: a task's facts, a chunk's records, a task's search."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.plain import PlainModel
from saebench_recovery.results.consistency import StoredRun
from saebench_recovery.results.mismatch import differing
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.provenance import data_hash
from saebench_recovery.runs.verify.evidence import read_flips
from saebench_recovery.runs.verify.flips import FittedTask
from saebench_recovery.runs.verify.refit import refitted
from saebench_recovery.runs.verify.report import Findings
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.plain import load_plain
from saebench_recovery.targets.target import Target


@dataclass(frozen=True)
class Piece:
    """The facts of a task, or the records of the run's chunk of a number, or the task's search."""

    task: str
    chunk: int | None = None
    search: bool = False


@dataclass(frozen=True)
class Recomputed:
    """What was found at a piece, the flips that were replayed, and how many searched again."""

    findings: Findings
    ids: tuple[str, ...] = ()
    searched: int = 0


@dataclass(eq=False)
class Recomputation:
    """Loads and fits what pieces need; those of one task are best done one after the other.

    `chosen` are the ids of the flips to replay, and `again` of those to search again, by task.
    """

    plan: Plan
    stored: StoredRun
    chosen: Mapping[str, AbstractSet[str]]
    again: Mapping[str, AbstractSet[str]]
    _target: Target | None = None
    _plain: tuple[list[Site], PlainModel] | None = None
    _fitted: tuple[str, FittedTask | None, Findings] | None = None

    def __call__(self, piece: Piece) -> Recomputed:
        """Recompute a piece; what cannot be is among what was found."""
        if piece.search:
            return self._searched(piece.task)
        if piece.chunk is None:
            return Recomputed(self._refitted(piece.task)[1])
        findings = Findings()
        flips = read_flips(self.stored, piece.chunk, findings)
        if flips is None or not (chosen := self.chosen[piece.task]):
            return Recomputed(findings)
        fitted, _ = self._refitted(piece.task)
        return Recomputed(findings, fitted.check(flips, chosen, findings) if fitted else ())

    def _searched(self, label: str) -> Recomputed:
        findings = Findings()
        fitted, _ = self._refitted(label) if self.again[label] else (None, findings)
        if fitted is None:
            return Recomputed(findings)
        records = self.stored.records[label]
        return Recomputed(
            findings, searched=fitted.search_again(self.again[label], records, findings)
        )

    def _refitted(self, label: str) -> tuple[FittedTask | None, Findings]:
        """A task fitted again, None if it cannot be replayed, and how its facts hold."""
        if self._fitted is None or self._fitted[0] != label:
            findings = Findings()
            try:
                fitted = self._fit(label, findings)
            except UserError as error:
                fitted = None
                findings.could_not_check("replay", str(error))
            self._fitted = (label, fitted, findings)
        return self._fitted[1:]

    def _fit(self, label: str, findings: Findings) -> FittedTask | None:
        """
        Raises:
            UserError: the target or the reference engine cannot be loaded.
        """
        target, matchup = self._loaded(findings), self.plan.matchups[label]
        seen = refitted(target, label, matchup, self.stored, findings)
        if seen is None:
            return None
        facts = self.stored.facts.get(label)
        if facts is None:
            return None
        sites = sorted(matchup.defense.latents)
        if self._plain is None or self._plain[0] != sites:
            self._plain = None  # two models may be more than the memory holds
            self._plain = (sites, load_plain(target.preset, sites, str(target.device)))
        return FittedTask(target, self._plain[1], matchup, self.plan.spec, facts, seen)

    def _loaded(self, findings: Findings) -> Target:
        """The target, whose data and precision are those of the run."""
        if self._target is None:
            spec, sites = self.plan.spec, self.plan.sites
            target = load_target(
                spec.target, dtype=spec.dtype, force_sae=spec.force_sae, asked=sites
            )
            hashed = data_hash(target, [matchup.task for matchup in self.plan.matchups.values()])
            made_by = self.stored.result.provenance
            findings.add(differing("provenance.data_hash", made_by.data_hash, hashed))
            dtype = str(target.dtype).removeprefix("torch.")
            findings.add(differing("provenance.dtype", made_by.dtype, dtype))
            self._target = target
        return self._target
