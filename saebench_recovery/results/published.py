"""Rows that are sent to others: an entry for each, and beside them the run that it is from.

A folder of entries, such as a leaderboard's, holds

    entries/<slug>-<hash>.json    one row, and the SHA-256 of every file that it rests on
    evidence/<identity>/          the run: result, facts, records and perturbations, never texts
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.file_names import hashed_name
from saebench_recovery.base.hashing import hash_file
from saebench_recovery.base.reading import is_folder, read_bytes, refuse_links
from saebench_recovery.results.chunks import evidence_tags, read_log
from saebench_recovery.results.entry import Entry, read_entries
from saebench_recovery.results.mismatch import Mismatch, differing
from saebench_recovery.results.store import (
    CHUNKS,
    EVIDENCE,
    RECORDS,
    RESULT,
    STATE,
    check_own,
    check_writable,
    read_model,
    unwritable,
    write_atomically,
)
from saebench_recovery.schema import Versioned

ENTRIES = "entries"
FILES = (RESULT, STATE, RECORDS, CHUNKS)  # of a run, besides its perturbations
FileName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(result\.json|run\.json|(records|chunks)\.jsonl|evidence/\d+\.safetensors)$"
    ),
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Where a word begins as an absolute path or one from somebody's home folder does.
_PLACE = re.compile(r"""(?:^|[\s"'=+@:,(\[])((?:/[^\s/"]|~\w*/|[A-Za-z]:[\\/])[^\s"]*)""")


class PublishedEntry(Versioned):
    """`entries/<slug>-<hash>.json`."""

    evidence: dict[FileName, Sha256] = Field(
        description="SHA-256 of each file of the run, by its place in evidence/<identity>/"
    )
    entry: Entry

    @model_validator(mode="after")
    def _identity_is_a_hash(self) -> PublishedEntry:
        if not re.fullmatch("[0-9a-f]{16}", self.entry.identity):
            raise ValueError("the identity is no hash")  # it names a folder
        return self

    @property
    def file_name(self) -> str:
        row = self.entry.row
        names = (row.target, row.task, row.defense, row.attack, row.threat_model)
        return f"{hashed_name(names, [self.entry.identity, row.task])}.json"


def is_entry(path: Path) -> bool:
    """Whether a path leads to an entry and not to a run or its `result.json`."""
    return path.suffix == ".json" and path.name != RESULT and not is_folder(path)


def read_entry(file: Path) -> PublishedEntry:
    """A published entry, which nothing is known of yet but its form.

    Raises:
        UserError: it cannot be read, or is a symbolic link.
    """
    refuse_links([file])
    return read_model(file, PublishedEntry, "publish the run again")


def run_of(file: Path, published: PublishedEntry) -> Path:
    """The folder with the run that an entry is from."""
    return file.parent.parent / EVIDENCE / published.entry.identity


def entries_in(folder: Path) -> list[Path]:
    """The entries of a folder, in the order of their names."""
    return sorted((folder / ENTRIES).glob("*.json"))


# --- writing ------------------------------------------------------------------------------------


def publish(run: Path, out: Path) -> list[Path]:
    """Write an entry for each row of a complete run, and its evidence; the paths of the entries.

    Raises:
        UserError: the run is partial, does not fit together or lacks evidence, a path of this
            machine stands in it, or `out` cannot be written or holds other evidence of this run.
    """
    entries = [scored.entry for scored in read_entries(run)]
    folder = run if is_folder(run) else run.parent
    log = read_log(folder)
    contents = {name: read_bytes(folder / name) for name in (*FILES, *(c.evidence for c in log))}
    for chunk in log:
        if _sha256(contents[chunk.evidence]) != chunk.sha256:
            raise UserError(f"{str(folder / chunk.evidence)!r} is broken; repeat the run")
    for name, content in contents.items():
        tags = json.dumps(evidence_tags(folder / name)) if name.startswith(EVIDENCE) else ""
        _check_no_place(tags or content.decode(errors="replace"), name)
    hashes = {name: _sha256(content) for name, content in contents.items()}
    return [
        write_entry(PublishedEntry(evidence=hashes, entry=entry), contents, out)
        for entry in entries
    ]


def copy_entry(file: Path, out: Path) -> Path:
    """Take an entry and its evidence over into another folder of entries; its path there.

    Raises:
        UserError: it cannot be read, its evidence is not what it says, or see `write_entry`.
    """
    published = read_entry(file)
    place = run_of(file, published)
    check_own(place)
    contents = {name: read_bytes(place / name) for name in published.evidence}
    for name, content in contents.items():
        if _sha256(content) != published.evidence[name]:
            raise UserError(f"{str(place / name)!r} is not the file that {str(file)!r} rests on")
    return write_entry(published, contents, out)


def write_entry(published: PublishedEntry, contents: Mapping[str, bytes], out: Path) -> Path:
    """Write evidence and entry, the entry last.

    Raises:
        UserError: other evidence of the run is there already, or the disk does not let us.
    """
    place = out / EVIDENCE / published.entry.identity
    there = {n: hash_file(place / n) for n in contents if (place / n).is_file()}
    if any(there[name] != published.evidence[name] for name in there):
        raise UserError(
            f"{str(place)!r} holds other evidence of this run, which other entries may rest on; "
            "remove it with its entries, or choose another folder"
        )
    check_writable(out)
    file = out / ENTRIES / published.file_name
    try:
        for name in contents.keys() - there.keys():
            write_atomically(place / name, contents[name])
        write_atomically(file, (published.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise unwritable(out, error) from None
    return file


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_no_place(text: str, name: str) -> None:
    found = _PLACE.search(text)
    if found is not None:
        raise UserError(
            f"{name} names a path of this machine, {found.group(1)[:80]!r}; run again from a "
            "folder in which the path is a relative one"
        )


# --- holding entries to what they rest on -------------------------------------------------------


def entry_mismatches(
    file: Path, published: PublishedEntry, *, same_version: bool
) -> Iterator[Mismatch]:
    """Where an entry is not the row of the run beside it, or that run has other files.

    `same_version`: this version made the run, so it words the command as that did.
    """
    place, stated = run_of(file, published), published.entry
    task = stated.row.task
    yield from differing("file name", file.name, published.file_name, task=task)
    found = {
        path.relative_to(place).as_posix(): hash_file(path)
        for path in place.rglob("*")
        if path.is_file()
    }
    yield from differing("evidence", published.evidence, found, task=task)
    try:
        rows = {scored.row.task: scored.entry for scored in read_entries(place)}
    except UserError:
        return  # a run that does not fit together has mismatches of its own
    if task not in rows:
        yield Mismatch(task=task, field="entry", stored=task, found="no row of the run")
        return
    worded = set() if same_version else {"command"}
    pair = (one.model_dump(mode="json", exclude=worded) for one in (stated, rows[task]))
    yield from differing("entry", *pair, task=task)


def strays(folder: Path) -> Iterator[str]:
    """What stands in a folder of entries and belongs to none of them."""
    files = entries_in(folder)
    yield from (
        f"{ENTRIES}/{path.name}" for path in (folder / ENTRIES).glob("*") if path not in files
    )
    named = set()
    for file in files:
        try:
            named.add(read_entry(file).entry.identity)
        except UserError:
            continue  # whoever reads it says so
    runs = (path.name for path in (folder / EVIDENCE).glob("*"))
    yield from (f"{EVIDENCE}/{name}" for name in runs if name not in named)
