"""What a search found is written again only where it is all there and of the same flips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch
from saebench_recovery.attacks.random_direction import RandomDirection

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.evidence import pack
from saebench_recovery.runs import same_search
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.runs.same_search import KeptSearch
from saebench_recovery.runs.shared import Shared
from saebench_recovery.scoring.journal import Chunk, Written
from saebench_recovery.scoring.undisturbed import Undisturbed
from saebench_recovery.spec import RunSpec
from tests.fake_engine import chunk

NAME = RandomDirection.name


@dataclass
class Journal:
    """One in memory."""

    chunks: list[tuple[str, Chunk]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def written(self, task: str, attack: str) -> Sequence[Written]:
        return [
            Written(c.records, c.attacking, c.scoring) for name, c in self.chunks if name == attack
        ]

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        self.chunks.append((attack, chunk))

    def failure(self, task: str, attack: str) -> str:
        return "".join(self.failed)

    def fail(self, task: str, attack: str, line: str) -> None:
        self.failed.append(line)


def plan(**given: Any) -> Plan:
    return Plan.of(check_names(RunSpec(tasks=("ioi",), limit=6, attack=NAME, **given)))


@pytest.fixture(scope="module")
def monitored() -> tuple[Plan, Undisturbed]:
    own = plan(defense="residual-monitor")
    return own, Shared().undisturbed(own, "ioi", lambda *told: None)


def found(seen: Undisturbed, count: int | None = None) -> Chunk:
    """A chunk of the first flips, with no perturbation at all."""
    flips = seen.flips[:count]
    ((site, latents),) = seen.defense.latents.items()
    nothing = torch.zeros(len(flips), 1, latents.dictionary.d_model)
    delta = ResidualDelta({site: nothing}, torch.zeros(len(flips), 1, dtype=torch.long))
    ids = [flip.example.id for flip in flips]
    tensors, metadata = pack({"headline": delta}, ids, task="ioi", attack=NAME)
    made = chunk("ioi", NAME, 0)
    records = [r.model_copy(update={"id": i}) for r, i in zip(made.records, ids, strict=False)]
    return replace(made, records=records, tensors=tensors, metadata=metadata)


def kept(own: Plan, seen: Undisturbed, *chunks: Chunk) -> KeptSearch:
    made = KeptSearch(own.search("ioi"), seen, Journal())
    for one in chunks:
        made.append("ioi", NAME, one)
    return made


def test_records_differ_in_what_the_monitor_says_alone(monitored: tuple[Plan, Undisturbed]) -> None:
    own, seen = monitored
    earlier, journal = kept(own, seen, found(seen)), Journal()
    KeptSearch(own.search("ioi"), seen, journal).begin_with(earlier, own)
    ((name, again),) = journal.chunks
    assert name == NAME
    assert {r.alarmed for r in again.records} == {False}  # nothing was perturbed
    was = found(seen)
    assert [r.model_copy(update={"alarmed": None}) for r in again.records] == was.records
    assert {k: t.tolist() for k, t in again.tensors.items()} == {
        k: t.tolist() for k, t in was.tensors.items()
    }
    assert again.attacking == was.attacking


def test_nothing_is_taken_from_what_is_not_whole_or_not_the_same(
    monitored: tuple[Plan, Undisturbed], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, seen = monitored
    whole = kept(own, seen, found(seen))

    def taken(earlier: KeptSearch, journal: Journal | None = None, asked: Plan = own) -> bool:
        journal = journal or Journal()
        before = len(journal.chunks)
        KeptSearch(asked.search("ioi"), seen, journal).begin_with(earlier, asked)
        return len(journal.chunks) > before

    assert taken(whole)
    assert not taken(whole, asked=plan(defense="residual-monitor", seed=1))
    assert not taken(whole, Journal([(NAME, found(seen))]))  # it has begun itself
    assert not taken(whole, Journal(failed=["it failed before"]))
    fewer = replace(seen, flips=seen.flips[1:])
    assert not taken(kept(own, fewer, found(fewer)))
    first = seen.flips[0]
    moved = replace(seen, flips=[replace(first, defended=first.defended + 1e-3), *seen.flips[1:]])
    assert not taken(kept(own, moved, found(seen)))
    resumed = KeptSearch(own.search("ioi"), seen, Journal([(NAME, found(seen, 1))]))
    resumed.written("ioi", NAME)
    resumed.append("ioi", NAME, found(seen))
    assert not taken(resumed)
    failed = kept(own, seen, found(seen))
    failed.fail("ioi", "another", "it failed")
    assert cast(Journal, failed.journal).failed == ["it failed"]
    assert not taken(failed)
    monkeypatch.setattr(same_search, "others_at_hand", lambda *plugins: True)
    assert not taken(whole)


def test_what_is_large_is_not_kept_in_memory(
    monitored: tuple[Plan, Undisturbed], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, seen = monitored
    size = sum(tensor.nbytes for tensor in found(seen).tensors.values())
    monkeypatch.setattr(same_search, "MOST_BYTES", 2 * size)
    within, beyond = (kept(own, seen, *[found(seen)] * count) for count in (2, 3))
    assert (len(within._chunks), len(beyond._chunks)) == (2, 0)
    journal = Journal()
    KeptSearch(own.search("ioi"), seen, journal).begin_with(beyond, own)
    assert not journal.chunks
    assert len(cast(Journal, beyond.journal).chunks) == 3
