"""What a search found, for a run whose defense differs in its monitor alone.

A monitor watches and changes nothing, so an attack finds the same under each: of what is written
only whether the monitor rings differs, and that takes a pass to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from saebench_recovery.perturbations.evidence import unpack
from saebench_recovery.runs.plan import Plan
from saebench_recovery.schema import Record
from saebench_recovery.scoring.integrity import disarmed, others_at_hand
from saebench_recovery.scoring.journal import Chunk, Journal, Written
from saebench_recovery.scoring.monitor import alarms

if TYPE_CHECKING:
    from saebench_recovery.scoring.setting import Flip
    from saebench_recovery.scoring.undisturbed import Undisturbed

MOST_BYTES = 2**27  # of a row's perturbations that are kept in memory


@dataclass
class KeptSearch:
    """The journal of a task under an attack, which also keeps in memory what is written to it.

    `search` names all that the search depends on (`Plan.search`).
    """

    search: str
    seen: Undisturbed
    journal: Journal
    _chunks: list[tuple[str, Chunk]] = field(default_factory=list)
    _whole: bool = True
    _bytes: int = 0

    def written(self, task: str, attack: str) -> Sequence[Written]:
        """See `Journal`; what an earlier process wrote is not in memory."""
        found = self.journal.written(task, attack)
        kept = sum(name == attack for name, _ in self._chunks)
        self._whole = self._whole and len(found) == kept
        return found

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        """See `Journal`."""
        self.journal.append(task, attack, chunk)
        self._bytes += sum(tensor.nbytes for tensor in chunk.tensors.values())
        self._whole = self._whole and self._bytes <= MOST_BYTES
        if self._whole:
            self._chunks.append((attack, chunk))
        else:
            self._chunks.clear()

    def failure(self, task: str, attack: str) -> str:
        """See `Journal`."""
        return self.journal.failure(task, attack)

    def fail(self, task: str, attack: str, line: str) -> None:
        """See `Journal`; a member that failed is tried again."""
        self._whole = False
        self.journal.fail(task, attack, line)

    def begin_with(self, other: KeptSearch, plan: Plan) -> None:
        """Write what the same search found for another run of these flips, and this monitor says.

        Nothing where the searches differ, code of others takes part, or this one has begun.
        """
        task = self.seen.task.label
        matchup, journal = plan.matchups[task], self.journal
        if not (other._whole and other.search == self.search and _same(other.seen, self.seen)):
            return
        if others_at_hand(*matchup.plugins.values()) or disarmed():
            return
        setting = self.seen.under(matchup.attack, plan.spec)
        names = [member.attack.name for member in setting.members]
        if any(journal.written(task, name) or journal.failure(task, name) for name in names):
            return
        active = setting.active
        examples = {flip.example.id: flip.example for flip in self.seen.flips}
        for attack, chunk in other._chunks:
            replayed = {
                name: tensor.to(active.target.device)
                for name, tensor in chunk.tensors.items()
                if name.startswith("headline/")
            }
            headline = unpack(replayed, chunk.metadata)["headline"]
            alarmed_E = alarms(active, [examples[r.id] for r in chunk.records], headline)
            alarmed = [None] * len(chunk.records) if alarmed_E is None else alarmed_E.tolist()
            self.append(task, attack, replace(chunk, records=_watched(chunk.records, alarmed)))


def _watched(records: Sequence[Record], alarmed: Sequence[bool | None]) -> list[Record]:
    return [
        record.model_copy(update={"alarmed": rings})
        for record, rings in zip(records, alarmed, strict=True)
    ]


def _same(one: Undisturbed, other: Undisturbed) -> bool:
    """Whether two fitted defenses flip the same prompts with the same numbers, and hold the same.

    So they do if they act alike, as the fit draws nothing at random.
    """
    of_both = ([*map(_numbers, seen.flips)] for seen in (one, other))
    held = ([(site, s.features.tolist()) for site, s in seen.held.items()] for seen in (one, other))
    return len({repr(flips) for flips in of_both}) == len({repr(sites) for sites in held}) == 1


def _numbers(flip: Flip) -> tuple[str, float, float, object]:
    return flip.example.id, flip.clean, flip.defended, flip.wrong.candidates
