"""What a verification found: what does not hold, and what could not be checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from saebench_recovery.results.mismatch import Mismatch, differing
from saebench_recovery.results.report.notebook import paragraph
from saebench_recovery.schema import Count, Stored

TOLERANCE = 1e-4  # relative, of a number that the reference engine recomputes
# The same where the model computes in less than float32: two orders of summing then differ more.
ROUNDED_TOLERANCE = 0.1


class Unchecked(Stored):
    """A part of a run that nothing could be said of."""

    what: str
    why: str

    @property
    def line(self) -> str:
        return f"{self.what}: {self.why}"


class Verification(Stored):
    """Whether a stored run holds."""

    identity: str
    flips: Count = Field(description="valid flips whose perturbations were replayed")
    searched: Count = Field(default=0, description="valid flips that were attacked once more")
    stored_flips: Count
    seed: int | None = Field(description="that drew what was sampled; null where nothing was")
    mismatches: tuple[Mismatch, ...]
    unchecked: tuple[Unchecked, ...]
    notes: tuple[str, ...] = Field(default=(), description="such as which version made the run")

    @property
    def holds(self) -> bool:
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """0: it holds; 1: something does not; 2: what was checked holds, and not all could be."""
        return 1 if self.mismatches else 2 if self.unchecked else 0

    @property
    def verdict(self) -> str:
        """Whether it holds, and how much of it was replayed."""
        held = ("holds", "does not hold", "holds as far as it could be checked")[self.exit_code]
        again = f", {self.searched} searched again" if self.searched else ""
        drawn = "" if self.seed is None else f", drawn with --sample-seed {self.seed}"
        return f"{held}; {self.flips} of {self.stored_flips} flips replayed{again}{drawn}"

    def lines(self) -> Iterator[str]:
        """All that was found, a line each."""
        for mismatch in self.mismatches:
            yield f"does not hold: {mismatch.line}"
        for part in self.unchecked:
            yield f"could not be checked: {part.line}"
        for note in self.notes:
            yield f"note: {note}"

    def _repr_html_(self) -> str:
        verdict = paragraph(f": {self.verdict}", bold=f"run {self.identity}")
        return verdict + "".join(map(paragraph, self.lines()))


@dataclass
class Findings:
    """What has been found so far."""

    mismatches: list[Mismatch] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, found: Iterable[Mismatch]) -> None:
        known = set(self.mismatches)
        self.mismatches += [mismatch for mismatch in found if mismatch not in known]

    def could_not_check(self, what: str, why: str) -> None:
        self.extend(Findings(unchecked=[Unchecked(what=what, why=why)]))

    def extend(self, other: Findings) -> None:
        """Add what others found that is not known yet."""
        self.add(other.mismatches)
        self.unchecked += [part for part in other.unchecked if part not in self.unchecked]
        self.notes += [note for note in other.notes if note not in self.notes]

    def verification(
        self, *, identity: str, flips: int, searched: int, stored_flips: int, seed: int | None
    ) -> Verification:
        """All of it, of a run of which so many flips were replayed and searched again."""
        return Verification(
            identity=identity,
            flips=flips,
            searched=searched,
            stored_flips=stored_flips,
            seed=seed,
            mismatches=tuple(self.mismatches),
            unchecked=tuple(self.unchecked),
            notes=tuple(self.notes),
        )


@dataclass(frozen=True)
class Place:
    """Where values are held against each other: a task, and one of its examples or none.

    `tolerance` is relative to the larger of two numbers.
    """

    findings: Findings
    task: str
    example: str = ""
    tolerance: float = TOLERANCE

    def same(self, field: str, stored: Any, found: Any) -> None:
        """Values must be equal."""
        self.findings.add(differing(field, stored, found, task=self.task, example=self.example))

    def close(self, field: str, stored: Any, found: Any, floor: float = 0.0) -> None:
        """Numbers must agree within the tolerance and an absolute floor; others must be equal."""
        if not self.agree(stored, found, floor):
            self.same(field, stored, found)

    def agree(self, stored: Any, found: Any, floor: float = 0.0) -> bool:
        """Whether two values are within the tolerance and the floor."""
        numbers = all(isinstance(v, int | float) for v in (stored, found))
        if not numbers:
            return bool(stored == found)
        return math.isclose(stored, found, rel_tol=self.tolerance, abs_tol=floor)

    def verdict(self, field: str, stored: Any, *, found: bool, undecided: bool) -> None:
        """Verdicts must be equal, except where rounding decides."""
        if not undecided:
            self.same(field, stored, found)
