"""Whether a stored run fits together: what every verb that reads a run checks first.

Cheap, as it imports neither torch nor numpy: figures are added up again from the records, while
intervals are only held to their order. `runs.verify` adds up whole rows and replays the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import join
from pathlib import Path

from pydantic import ValidationError

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import file_size, is_file, is_folder, reason
from saebench_recovery.results.chunks import evidence_tags, read_chunks
from saebench_recovery.results.figures import figure_mismatches
from saebench_recovery.results.impossible import impossible
from saebench_recovery.results.mismatch import ROUNDING, Mismatch, differing
from saebench_recovery.results.packed import tags
from saebench_recovery.results.store import RECORDS, RESULT, STATE, read_result, read_state
from saebench_recovery.schema import (
    Cost,
    Facts,
    Record,
    Row,
    RunResult,
    RunState,
    StoredChunk,
)
from saebench_recovery.scoring.flags import flags
from saebench_recovery.scoring.suite import is_suite, standings, unbroken, worst_case
from saebench_recovery.spec import RunSpec

COUNTED = ("forward", "backward", "token_layers", "flops")
# What a row repeats of the facts, and the facts of the spec.
FROM_FACTS = tuple(
    name for name in Row.model_fields if name in Facts.model_fields and name != "examples"
)
FROM_SPEC = (
    "defense",
    "attack",
    "threat_model",
    "budget",
    "budget_unit",
    "limits",
    "seed",
)


@dataclass(frozen=True)
class StoredRun:
    """All that is stored of a run but its evidence."""

    folder: Path
    result: RunResult
    state: RunState
    chunks: Sequence[tuple[StoredChunk, Sequence[Record]]]

    @cached_property
    def facts(self) -> dict[str, Facts]:
        return {facts.task: facts for facts in self.state.facts}

    @cached_property
    def records(self) -> dict[str, list[Record]]:
        """Of each task, of all members of a suite."""
        found: dict[str, list[Record]] = {}
        for chunk, records in self.chunks:
            found.setdefault(chunk.task, []).extend(records)
        return found


def read_consistent(path: Path) -> tuple[RunResult, StoredRun | None]:
    """The result of a complete run that fits its records and its spec, and what stands beside it.

    A result that stands alone, as one that was sent without its records, is held to itself.

    Raises:
        UserError: it cannot be read, or something does not fit; the line says what.
    """
    result = read_result(path)
    stored, found = read_beside(result, path if is_folder(path) else path.parent)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(
            f"{str(path)!r} does not fit together: {found[0].line}{more}; it was edited or is "
            "damaged, `saebench verify` says where"
        )
    return result, stored


def read_beside(result: RunResult, folder: Path) -> tuple[StoredRun | None, list[Mismatch]]:
    """A run whose result is known, if it can be read, and all that does not fit in it."""
    state, stored, unread = read_state(folder), None, []
    if state is not None:
        try:
            stored = StoredRun(folder, result, state, read_chunks(folder))
        except UserError as error:
            lines = "the lines that chunks.jsonl counts"
            unread = [Mismatch(field=RECORDS, stored=lines, found=str(error))]
    found: list[Mismatch] = []
    try:
        found += mismatches(result, stored)
    except (ArithmeticError, ValueError) as error:  # of counts that no run has
        what = "counts that can be added up"
        found.append(Mismatch(field=STATE, stored=what, found=reason(error)))
    return stored, [*found, *unread]


def mismatches(result: RunResult, stored: StoredRun | None) -> Iterator[Mismatch]:
    """Everything that does not fit in a result, and in what is stored beside it."""
    for row in result.rows:
        yield from impossible(row)
    if stored is None:
        return
    yield from _heads(stored)
    yield from _chunk_mismatches(stored)
    for row in result.rows:
        facts = stored.facts.get(row.task)
        if facts is not None:
            yield from _row_mismatches(row, facts, stored)


def _heads(stored: StoredRun) -> Iterator[Mismatch]:
    """`result.json` and `run.json` are of one run, and its facts are those of its spec."""
    result, state = stored.result, stored.state
    for name in ("status", "identity", "spec", "provenance"):
        yield from differing(f"run.json {name}", getattr(state, name), getattr(result, name))
    resolved = result.spec.get("resolved")
    tasks = list(resolved) if isinstance(resolved, dict) else None
    for what, found in (
        (RESULT, [row.task for row in result.rows]),
        ("run.json", [f.task for f in state.facts]),
    ):
        yield from differing(f"{what} tasks", found, tasks)
    try:
        spec = RunSpec.stored(result.spec)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        yield Mismatch(field=f"spec.{where}", stored=repr(problem["input"]), found=problem["msg"])
        return
    for facts in state.facts:
        for name in FROM_SPEC:
            yield from differing(
                f"run.json {name}", getattr(facts, name), getattr(spec, name), task=facts.task
            )


def _chunk_mismatches(stored: StoredRun) -> Iterator[Mismatch]:
    """Records stand in the chunks that name them, and chunks hold all records."""
    for chunk, records in stored.chunks:
        for record in records:
            if record.task != chunk.task or record.attack != chunk.attack:
                yield from differing(
                    "task and attack",
                    [record.task, record.attack],
                    [chunk.task, chunk.attack],
                    task=chunk.task,
                    example=record.id,
                )
            if (record.flops_recovers or 0) > record.flops:
                yield Mismatch(
                    task=record.task,
                    example=record.id,
                    field="flops_recovers",
                    stored=str(record.flops_recovers),
                    found=f"{record.flops} spent in all",
                )
        spent = sum(record.flops for record in records)
        if spent > chunk.attacking.flops * (1 + ROUNDING):
            yield Mismatch(
                task=chunk.task,
                field=f"flops of {chunk.evidence}",
                stored=str(chunk.attacking.flops),
                found=f"{spent} on its flips",
            )
        yield from _tag_mismatches(join(stored.folder, chunk.evidence), chunk, records)
    logged = stored.chunks[-1][0].records_end if stored.chunks else 0
    yield from differing(f"{RECORDS} bytes", file_size(join(stored.folder, RECORDS)), logged)
    names = [chunk.evidence for chunk, _ in stored.chunks]
    yield from differing("chunks.jsonl evidence", names, list(dict.fromkeys(names)))
    tasks = set(stored.facts)
    for chunk, _ in stored.chunks:
        if chunk.task not in tasks:
            yield Mismatch(task=chunk.task, field="chunks.jsonl task", stored=chunk.task, found="-")


def _tag_mismatches(file: str, chunk: StoredChunk, records: Sequence[Record]) -> Iterator[Mismatch]:
    """The file of evidence is of these flips in this order. One that is gone says nothing."""
    if not is_file(file):
        return
    try:
        found = evidence_tags(file)
    except UserError as error:
        yield Mismatch(task=chunk.task, field=chunk.evidence, stored="evidence", found=str(error))
        return
    for name, wanted in tags(chunk.task, chunk.attack, records).items():
        yield from differing(f"{chunk.evidence} {name}", found.get(name), wanted, task=chunk.task)


def _row_mismatches(row: Row, facts: Facts, stored: StoredRun) -> Iterator[Mismatch]:
    records = stored.records.get(row.task, [])
    for name in FROM_FACTS:
        yield from differing(name, getattr(row, name), getattr(facts, name), task=row.task)
    try:
        flips = worst_case(records, facts.members)
    except UserError as error:
        yield Mismatch(task=row.task, field=RECORDS, stored="each flip once", found=str(error))
        return
    clusters = len({record.cluster or record.id for record in flips})
    counts = {**vars(facts.examples), "clusters": clusters}
    yield from differing("examples", vars(row.examples), counts, task=row.task)
    scored = facts.examples.valid - facts.examples.learned
    yield from differing("records", len(flips), scored, task=row.task)
    if is_suite(facts) and len(facts.member_flops) != len(facts.members):
        many, members = len(facts.member_flops), len(facts.members)
        yield from differing("members of member_flops", many, members, task=row.task)
        return
    yield from differing("suite", row.suite, standings(facts, records), task=row.task)
    yield from _member_mismatches(facts, records)
    yield from figure_mismatches(row, flips, facts)
    yield from differing("flags", row.flags, flags(row, facts, flips, records), task=row.task)
    yield from _cost_mismatches(facts, [chunk for chunk, _ in stored.chunks])


def _member_mismatches(facts: Facts, records: Sequence[Record]) -> Iterator[Mismatch]:
    """Each member of a suite was tried on what those before it left, unless it failed."""
    by_member = {m: [r for r in records if r.attack == m] for m in facts.members}
    left = sorted({record.id for record in records})
    earlier: list[Record] = []
    for member, own in by_member.items():
        left = unbroken(left, earlier)
        ids = sorted(record.id for record in own)
        wanted = [id for id in left if id in ids] if member in facts.failures else left
        yield from differing(f"flips tried by {member}", ids, wanted, task=facts.task)
        earlier += own


def _cost_mismatches(facts: Facts, chunks: Sequence[StoredChunk]) -> Iterator[Mismatch]:
    """What the attack cost is what its chunks cost, unless it learned beside them."""
    own = [chunk for chunk in chunks if chunk.task == facts.task]

    def total(of: Callable[[StoredChunk], Cost], name: str) -> int:
        return sum(getattr(of(chunk), name) for chunk in own)

    for name in COUNTED:
        attack, scoring = (
            getattr(cost, name) for cost in (facts.compute.attack, facts.compute.scoring)
        )
        if not facts.examples.learned:
            spent = total(lambda chunk: chunk.attacking, name)
            yield from differing(f"compute.attack.{name}", attack, spent, task=facts.task)
        least = total(lambda chunk: chunk.scoring, name)
        if scoring < least:
            yield Mismatch(
                task=facts.task,
                field=f"compute.scoring.{name}",
                stored=str(scoring),
                found=f"{least} in its chunks alone",
            )
    members = sum(facts.member_flops)
    yield from differing("member_flops", members, facts.compute.attack.flops, task=facts.task)
