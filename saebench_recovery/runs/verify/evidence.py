"""The files of evidence: whether they are those that were written, and whose perturbations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.hashing import hash_file
from saebench_recovery.interfaces import Perturbation
from saebench_recovery.perturbations.evidence import PARTS, is_shared, unpack
from saebench_recovery.results.chunks import read_chunk_evidence
from saebench_recovery.results.consistency import StoredRun
from saebench_recovery.results.store import EVIDENCE
from saebench_recovery.runs.verify.report import Findings, Place
from saebench_recovery.schema import Record, StoredChunk


@dataclass(frozen=True)
class StoredFlips:
    """A chunk of a run: its records, and a perturbation of each part for all of them."""

    chunk: StoredChunk
    records: Sequence[Record]
    parts: Mapping[str, Perturbation]


def unlogged(stored: StoredRun, findings: Findings) -> None:
    """Name the files of evidence that no chunk speaks of."""
    known = {chunk.evidence for chunk, _ in stored.chunks}
    there = {f"{EVIDENCE}/{file.name}" for file in (stored.folder / EVIDENCE).glob("*")}
    for name in sorted(there - known):
        Place(findings, "").same(name, "in no chunk", "a file")


def read_flips(stored: StoredRun, number: int, findings: Findings) -> StoredFlips | None:
    """A chunk by its number, held to log, facts and records; None if its evidence is unreadable."""
    chunk, records = stored.chunks[number]
    place = Place(findings, chunk.task)
    file = stored.folder / chunk.evidence
    if not file.is_file():
        findings.could_not_check(f"{chunk.task} evidence", f"{chunk.evidence} is missing")
        return None
    place.same(f"{chunk.evidence} sha256", chunk.sha256, hash_file(file))
    try:
        tensors, metadata = read_chunk_evidence(stored.folder, chunk, records)
        parts = unpack(tensors, metadata)
        _check_parts(parts, records)
    except UserError as error:
        place.same(chunk.evidence, "the perturbations of its records", str(error))
        return None
    _same_kind(stored, chunk, metadata["kind"], place)
    return StoredFlips(chunk, records, parts)


def _same_kind(stored: StoredRun, chunk: StoredChunk, kind: str, place: Place) -> None:
    facts = stored.facts.get(chunk.task)
    if facts is not None and facts.perturbation.kind not in ("several", kind):
        place.same(f"{chunk.evidence} kind", kind, facts.perturbation.kind)


def _check_parts(parts: Mapping[str, Perturbation], records: Sequence[Record]) -> None:
    """Each part is known, finite, and has an entry for every record.

    Raises:
        UserError: one is not so.
    """
    for name, perturbation in parts.items():
        if name not in PARTS:
            raise UserError(f"an unknown part {name!r}")
        for tensor, values in perturbation.tensors().items():
            if not is_shared(tensor) and len(values) != len(records):
                raise UserError(f"{name}/{tensor} has {len(values)} entries, of {len(records)}")
            if not torch.isfinite(values).all():
                raise UserError(f"{name}/{tensor} is not finite")
