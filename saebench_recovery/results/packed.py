"""A chunk of flips as the bytes that go to disk, the same for the same chunk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from saebench_recovery.schema import Cost, Record, Stored
from saebench_recovery.scoring.journal import Chunk


@dataclass(frozen=True)
class Packed:
    """A chunk ready to be written; `records` and `texts` are lines of JSON."""

    task: str
    attack: str
    records: bytes
    texts: bytes
    evidence: bytes
    attacking: Cost
    scoring: Cost


def pack(task: str, attack: str, chunk: Chunk) -> Packed:
    """A chunk of a task under an attack (of a suite, one member)."""
    return Packed(
        task=task,
        attack=attack,
        records=b"".join(map(line_of, chunk.records)),
        texts=b"".join(map(line_of, chunk.texts)),
        evidence=_safetensors(task, attack, chunk),
        attacking=chunk.attacking,
        scoring=chunk.scoring,
    )


def line_of(model: Stored) -> bytes:
    """One line of a file of JSON lines."""
    return (model.model_dump_json() + "\n").encode()


def tags(task: str, attack: str, records: Sequence[Record]) -> dict[str, str]:
    """What the metadata of a file of evidence say of whom it is."""
    return {"task": task, "attack": attack, "ids": json.dumps([record.id for record in records])}


def _safetensors(task: str, attack: str, chunk: Chunk) -> bytes:
    """The evidence as a safetensors file.

    The library writes metadata in an order that changes from process to process, so the header
    is put in order: its length in 8 bytes, JSON filled up with blanks to a multiple of 8.
    """
    from safetensors.torch import save  # it imports torch

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in chunk.tensors.items()}
    content: bytes = save(tensors, {**chunk.metadata, **tags(task, attack, chunk.records)})
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[length:]
