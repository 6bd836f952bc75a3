"""A stored run in the hands of somebody who edits it: carelessly, or so that all fits again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from saebench_recovery.base.hashing import hash_file
from saebench_recovery.results.chunks import read_log
from saebench_recovery.results.store import read_records, read_result, read_state
from saebench_recovery.schema import Facts, Record
from saebench_recovery.scoring.aggregate import aggregate

Document = dict[str, Any]


def edited(file: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def put(document: Any, place: str, value: Any) -> None:
    """Set a leaf by its dotted place; a function changes what is there."""
    *above, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    for part in above:
        document = document[part]
    document[last] = value(document[last]) if callable(value) else value


def lines(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of a file."""
    file.write_text("".join(f"{line}\n" for line in change(file.read_text().splitlines())))


class Forger:
    """Edits facts, records and evidence of a run, and seals it: sums, sizes, hashes fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        state = read_state(folder)
        assert state is not None
        self.state: Document = state.model_dump(mode="json")
        self.result: Document = read_result(folder).model_dump(mode="json")
        self.records: list[Document] = [r.model_dump(mode="json") for r in read_records(folder)]
        self.chunks: list[Document] = [c.model_dump(mode="json") for c in read_log(folder)]
        self.evidence = [self._read(folder / chunk["evidence"]) for chunk in self.chunks]

    @staticmethod
    def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata())

    def spec(self, place: str, value: Any) -> None:
        """Edit the spec in both places in which it stands."""
        for document in (self.result, self.state):
            put(document["spec"], place, value)

    def tensors(self, wanted: str) -> Iterator[Tensor]:
        """The tensors of all chunks whose name begins so, to be written into."""
        for tensors, _ in self.evidence:
            yield from (values for name, values in tensors.items() if name.startswith(wanted))

    def remove(self, e: int) -> None:
        """Take out a flip of the first chunk and all that counts it."""
        del self.records[e]
        tensors, metadata = self.evidence[0]
        kept = [i for i in range(self.chunks[0]["records"]) if i != e]
        self.evidence[0] = ({n: v[torch.tensor(kept)] for n, v in tensors.items()}, metadata)
        self.chunks[0]["records"] -= 1
        self.state["facts"][0]["examples"]["valid"] -= 1

    def seal(self) -> None:
        """Write everything so that it fits together."""
        content, begin = b"", 0
        for chunk, (tensors, metadata) in zip(self.chunks, self.evidence, strict=True):
            own = self.records[begin : begin + chunk["records"]]
            begin += chunk["records"]
            content += b"".join(Record(**r).model_dump_json().encode() + b"\n" for r in own)
            chunk["records_end"] = len(content)
            file = self.folder / chunk["evidence"]
            ids = json.dumps([record["id"] for record in own])
            save_file(tensors, file, {**metadata, "ids": ids})
            chunk["sha256"] = hash_file(file)
        (self.folder / "records.jsonl").write_bytes(content)
        lines(self.folder / "chunks.jsonl", lambda _: [json.dumps(c) for c in self.chunks])
        records = read_records(self.folder)
        self.result["rows"] = [
            aggregate(
                Facts.model_validate(facts), [r for r in records if r.task == facts["task"]]
            ).model_dump(mode="json")
            for facts in self.state["facts"]
        ]
        for name, document in (("run.json", self.state), ("result.json", self.result)):
            (self.folder / name).write_text(json.dumps(document))
