"""The journal of a run on disk: chunks of flips, each there for good or not at all.

A chunk's evidence, records and texts are written first and its line in `chunks.jsonl` last; so
whatever a kill leaves behind the last line is dropped when the run goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.hashing import hash_file
from saebench_recovery.base.reading import read_bytes, read_tensors, reason
from saebench_recovery.results.packed import Packed, line_of, pack, tags
from saebench_recovery.results.replaced import finish_replacing
from saebench_recovery.results.store import (
    CHUNKS,
    EVIDENCE,
    FAILURES,
    RECORDS,
    TEXTS,
    check_own,
    parse_lines,
    read_state,
    sync_names,
    unwritable,
    write_atomically,
)
from saebench_recovery.schema import Record, StoredChunk, StoredFailure
from saebench_recovery.scoring.journal import Chunk, Written

if TYPE_CHECKING:
    from torch import Tensor


LONGEST_HEADER = 2**24  # bytes of a safetensors header


class RunJournal:
    """The `Journal` of a run's folder.

    It holds the folder's earlier chunks to what their log says, and cuts off what is behind.
    Texts are kept if `keep_texts`, or if the run was begun so.

    Raises:
        UserError: a file is missing or broken, or texts of earlier chunks were not kept.
    """

    def __init__(self, folder: Path, *, keep_texts: bool = False) -> None:
        self.folder = folder
        try:
            finish_replacing(folder)
        except OSError as error:
            raise unwritable(folder, error) from None
        self.chunks = read_log(folder)
        self.failures = read_failures(folder)
        self._keeps_texts = keep_texts or (folder / TEXTS).exists()
        if keep_texts and self.chunks and not (folder / TEXTS).exists():
            raise no_texts(folder)
        for chunk in self.chunks:
            file = folder / chunk.evidence
            if not file.is_file() or hash_file(file) != chunk.sha256:
                raise UserError(f"{str(file)!r} is missing or broken; repeat the run with --force")
        last = self.chunks[-1] if self.chunks else None
        try:
            (folder / EVIDENCE).mkdir(parents=True, exist_ok=True)
            _cut(folder / CHUNKS, len(_whole_lines(folder / CHUNKS)))
            if (folder / FAILURES).exists():
                _cut(folder / FAILURES, len(_whole_lines(folder / FAILURES)))
            _cut(folder / RECORDS, last.records_end if last else 0)
            if self._keeps_texts:
                _cut(folder / TEXTS, last.texts_end if last else 0)
            logged = {chunk.evidence for chunk in self.chunks}
            for file in (folder / EVIDENCE).iterdir():
                if f"{EVIDENCE}/{file.name}" not in logged:
                    file.unlink()
            sync_names(folder)
        except OSError as error:
            raise unwritable(folder, error) from None

    def written(self, task: str, attack: str) -> Sequence[Written]:
        """The chunks of a task under an attack that are on disk, in their order."""
        return written_in(self.folder, self.chunks, task, attack)

    def append(self, task: str, attack: str, chunk: Chunk) -> None:
        """Keep one more chunk; when this returns, a kill does not lose it.

        Raises:
            UserError: the disk is full, or the folder has become unwritable.
        """
        self.keep(pack(task, attack, chunk))

    def keep(self, packed: Packed) -> None:
        """The same for a chunk that another process may have packed.

        Raises:
            UserError: see `append`.
        """
        evidence = f"{EVIDENCE}/{len(self.chunks):05d}.safetensors"
        try:
            write_atomically(self.folder / evidence, packed.evidence)
            entry = StoredChunk(
                task=packed.task,
                attack=packed.attack,
                records=packed.records.count(b"\n"),
                records_end=_append(self.folder / RECORDS, packed.records),
                texts_end=_append(self.folder / TEXTS, packed.texts) if self._keeps_texts else 0,
                evidence=evidence,
                sha256=hashlib.sha256(packed.evidence).hexdigest(),
                attacking=packed.attacking,
                scoring=packed.scoring,
            )
            _append(self.folder / CHUNKS, line_of(entry))
        except OSError as error:
            raise unwritable(self.folder, error) from None
        self.chunks.append(entry)

    def failure(self, task: str, attack: str) -> str:
        """The line of a member of a suite that failed, in this process or an earlier one."""
        return self.failures.get((task, attack), "")

    def fail(self, task: str, attack: str, line: str) -> None:
        """Keep that a member failed.

        Raises:
            UserError: see `append`.
        """
        try:
            failed = StoredFailure(task=task, attack=attack, line=line)
            _append(self.folder / FAILURES, line_of(failed))
        except OSError as error:
            raise unwritable(self.folder, error) from None
        self.failures[task, attack] = line

    def records(self, task: str) -> list[Record]:
        """All records of a task, of all members of a suite."""
        return [
            record
            for chunk, records in _with_records(self.folder, self.chunks)
            if chunk.task == task
            for record in records
        ]


def written_in(
    folder: Path, chunks: Sequence[StoredChunk], task: str, attack: str
) -> list[Written]:
    """Those of a run's chunks that are of a task under an attack, with their records."""
    return [
        Written(records, chunk.attacking, chunk.scoring)
        for chunk, records in _with_records(folder, chunks)
        if (chunk.task, chunk.attack) == (task, attack)
    ]


def read_log(folder: Path) -> list[StoredChunk]:
    """The chunks of a run that are on disk for good; a line that was cut short is none.

    Raises:
        UserError: the log is broken, or see `check_own`.
    """
    check_own(folder)
    file = folder / CHUNKS
    return parse_lines(StoredChunk, _whole_lines(file), file)


def read_failures(folder: Path) -> dict[tuple[str, str], str]:
    """The lines of members of suites that failed, by task and attack.

    Raises:
        UserError: the file is broken.
    """
    file = folder / FAILURES
    return {
        (f.task, f.attack): f.line for f in parse_lines(StoredFailure, _whole_lines(file), file)
    }


def _whole_lines(file: Path) -> bytes:
    content = read_bytes(file) if os.path.exists(file) else b""
    return content[: content.rfind(b"\n") + 1]


def read_chunks(folder: Path) -> list[tuple[StoredChunk, list[Record]]]:
    """The chunks of a run that are on disk for good, with their records.

    Raises:
        UserError: the log or the records are broken, or the records are not as the log says.
    """
    return _with_records(folder, read_log(folder))


def read_evidence(folder: Path, task: str, attack: str) -> list[Chunk]:
    """The chunks of a task under an attack (of a suite, one member) with their perturbations.

    Raises:
        UserError: a file is missing or broken, or holds perturbations of another kind or of other
            examples than its records.
    """
    state = read_state(folder)
    kinds = {facts.task: facts.perturbation.kind for facts in state.facts} if state else {}
    chunks = [
        Chunk(records, *read_chunk_evidence(folder, chunk, records), chunk.attacking, chunk.scoring)
        for chunk, records in _with_records(folder, read_log(folder))
        if (chunk.task, chunk.attack) == (task, attack)
    ]
    kind = kinds.get(task, "several")
    for chunk in chunks:
        if kind not in ("several", chunk.metadata["kind"]):
            raise UserError(
                f"evidence of {task!r} under {attack!r} in {str(folder)!r} is of kind "
                f"{chunk.metadata['kind']!r}, but the run perturbed {kind!r}: it is of another run"
            )
    return chunks


def read_chunk_evidence(
    folder: Path, chunk: StoredChunk, records: Sequence[Record]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of one chunk's file.

    Raises:
        UserError: it is missing or broken, or belongs to other records.
    """
    file = folder / chunk.evidence
    tensors, metadata = read_tensors(file)
    if "kind" not in metadata:
        raise UserError(f"{str(file)!r} does not say what kind of perturbation it holds")
    for name, wanted in tags(chunk.task, chunk.attack, records).items():
        if metadata.get(name) != wanted:
            raise UserError(
                f"{str(file)!r} does not belong to its records: it has {name} "
                f"{_short(metadata.get(name))}, the records {_short(wanted)}"
            )
    return tensors, metadata


def evidence_tags(file: str | Path) -> dict[str, str]:
    """The metadata of a file of evidence, read from its header without torch.

    Raises:
        UserError: it has none.
    """
    try:
        with open(file, "rb", buffering=0) as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, LONGEST_HEADER)))
        return {str(name): str(value) for name, value in header["__metadata__"].items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        words = f"{type(error).__name__}: {reason(error)}"  # its repr may hold the whole header
        raise UserError(f"{str(file)!r} has no header that can be read: {words}") from None


def _short(text: str | None) -> str:
    return repr(text) if text is None or len(text) <= 60 else f"{text[:57]!r}..."


def _with_records(
    folder: Path, chunks: Sequence[StoredChunk]
) -> list[tuple[StoredChunk, list[Record]]]:
    file = folder / RECORDS
    content = read_bytes(file) if chunks else b""
    found, start = [], 0
    for chunk in chunks:
        records = parse_lines(Record, content[start : chunk.records_end], file)
        if len(records) != chunk.records:
            raise UserError(f"{str(file)!r} is cut short; repeat the run with --force")
        found.append((chunk, records))
        start = chunk.records_end
    return found


def no_texts(folder: Path) -> UserError:
    """The line for texts that are asked for too late."""
    return UserError(
        f"{str(folder)!r} has no texts of what is done already; to keep them, repeat the run with "
        "--force"
    )


def _append(file: Path, lines: bytes) -> int:
    """Add lines to a file, on the disk when this returns; its size in bytes."""
    with file.open("ab") as opened:
        opened.write(lines)
        opened.flush()
        os.fsync(opened.fileno())
        return opened.tell()


def _cut(file: Path, size: int) -> None:
    """Make a file that is at least so long exactly so long."""
    file.touch()
    if file.stat().st_size < size:
        raise UserError(f"{str(file)!r} is cut short; repeat the run with --force")
    os.truncate(file, size)
