"""Files of a run: written whole or not at all, and read with one line for what does not fit.

`<out>/<identity>/` holds `run.json`, and appended chunk by chunk `records.jsonl`, `evidence/` and
`chunks.jsonl`, on request `texts.jsonl`, of a suite that has a member that fails
`failures.jsonl`; `result.json` comes last.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import (
    check_json,
    is_file,
    is_folder,
    read_bytes,
    refuse_links,
)
from saebench_recovery.schema import SCHEMA_VERSION, Record, RunResult, RunState, Stored, Versioned
from saebench_recovery.spec import RunSpec

STATE, RESULT, RECORDS = "run.json", "result.json", "records.jsonl"
# Of the spec of a result, what all who show it count on.
READ = (
    "target",
    "defense",
    "attack",
    "tasks",
    "protocol",
    "threat_model",
    "budget",
    "budget_unit",
    "seed",
)
CHUNKS, EVIDENCE, TEXTS = "chunks.jsonl", "evidence", "texts.jsonl"
FAILURES = "failures.jsonl"
NAMES = (RESULT, STATE, RECORDS, CHUNKS, EVIDENCE, TEXTS, FAILURES)
REPEAT = "delete it to run again"

Model = TypeVar("Model", bound=Stored)
Whole = TypeVar("Whole", bound=Versioned)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its name shows either the old content or all of the new one.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_names(path.parent)


def sync_names(folder: Path) -> None:
    """Make new names in a folder survive a power cut, as their contents do."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_model(path: Path, model: BaseModel) -> None:
    """Write a model as indented JSON, atomically.

    Raises:
        UserError: the disk is full, or the folder has become unwritable.
    """
    try:
        write_atomically(path, (model.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise unwritable(path.parent, error) from None


def unwritable(folder: Path, error: OSError) -> UserError:
    """The line for a folder that the system refuses to write to."""
    return UserError(f"cannot write to {str(folder)!r}: {error.strerror}")


def check_writable(folder: Path) -> None:
    """Make sure that results can be written, before any work is done.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from None


def check_own(folder: Path) -> None:
    """Make sure that a run's files are its own: what a link leads to is no part of the run.

    The folder itself may be one, or stand behind one.

    Raises:
        UserError: a file of the run is a symbolic link.
    """
    refuse_links(folder / name for name in NAMES)
    if is_folder(folder / EVIDENCE):
        refuse_links((folder / EVIDENCE).iterdir())


def read_result(path: Path) -> RunResult:
    """The result of a complete run, given its folder or its `result.json`.

    Raises:
        UserError: there is none, it is no result, another version wrote it, or see `check_own`.
    """
    file = path / RESULT if is_folder(path) else path
    refuse_links([file])
    check_own(file.parent)
    if not os.path.exists(file):
        if is_file(file.parent / STATE):
            line = f"the run at {str(path)!r} is not complete; repeat its command to go on"
            raise UserError(line)
        raise UserError(f"no run at {str(path)!r}: {str(file)!r} does not exist")
    # Of another name it may be anything, such as the records, and is not to be deleted.
    remedy = REPEAT if file.name == RESULT else f"give the folder of a run, or its {RESULT}"
    result = read_model(file, RunResult, remedy)
    _check_spec(result, file)
    return result


def read_state(folder: Path) -> RunState | None:
    """How far the run in a folder has come; None if it has not begun.

    Raises:
        UserError: it cannot be read, see `read_result`.
    """
    file = folder / STATE
    return read_model(file, RunState) if os.path.exists(file) else None


def read_records(folder: Path) -> list[Record]:
    """Every record of a run, task by task, in the order in which they were scored.

    Raises:
        UserError: the file is missing or broken.
    """
    return parse_lines(Record, read_bytes(folder / RECORDS), folder / RECORDS)


def parse_lines(model: type[Model], content: bytes, file: Path) -> list[Model]:
    """The lines of a JSONL file.

    Raises:
        UserError: one of them does not follow the schema.
    """
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            found.append(model.model_validate_json(line))
        except ValidationError:
            raise UserError(
                f"{str(file)!r} is broken at line {number}; repeat the run with --force"
            ) from None
    return found


class _Settings(BaseModel):
    """The resolved settings of a row."""

    site: str
    task: dict[str, Any]
    defense: dict[str, Any]
    attack: dict[str, Any]


class _StoredSpec(RunSpec):
    """The `spec` of a result: what was asked, and what came of it."""

    model_config = ConfigDict(extra="ignore")

    resolved: Mapping[str, _Settings] = Field(default_factory=dict)
    environment: Mapping[str, Any] = Field(default_factory=dict)
    plugin_files: tuple[str, ...] = ()


def _check_spec(result: RunResult, file: Path) -> None:
    """Hold a result's `spec` to the types that all who read it count on."""
    try:
        check_json(result.spec, f"cannot read {str(file)!r}")
        spec = _StoredSpec.model_validate(result.spec)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("spec", *problem["loc"]))
        raise UserError(
            f"{str(file)!r} does not follow its schema at {where}: {problem['msg']}; {REPEAT}"
        ) from None
    except RecursionError:
        raise UserError(f"cannot read {str(file)!r}: its spec is nested too deep") from None
    if missing := [name for name in READ if name not in result.spec]:
        raise UserError(f"{str(file)!r} does not say spec.{missing[0]}; {REPEAT}")
    unsettled = [row.task for row in result.rows if row.task not in spec.resolved]
    if spec.resolved and unsettled:
        raise UserError(f"{str(file)!r} has no settings for its row {unsettled[0]!r}")


def read_model(file: Path, model: type[Whole], remedy: str = REPEAT) -> Whole:
    """A file that names the version of its schema; `remedy` ends the line where it is broken.

    Raises:
        UserError: it cannot be read, does not follow the schema, or another version wrote it.
    """
    content = read_bytes(file)
    try:
        found = model.model_validate_json(content)
    except ValidationError as error:
        _check_version(content, file, remedy)  # of another one, that is what is wrong with it
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"{str(file)!r} does not follow schema version {SCHEMA_VERSION} at {where}: "
            f"{problem['msg']}; {remedy}"
        ) from None
    if "schema_version" not in found.model_fields_set or found.schema_version != SCHEMA_VERSION:
        _check_version(content, file, remedy)
    return found


class _Versioned(BaseModel):
    schema_version: int = Field(strict=True)


def _check_version(content: bytes, file: Path, remedy: str) -> None:
    """Make sure that this package's version of the schema is named."""
    try:
        version = _Versioned.model_validate_json(content).schema_version
    except ValidationError:
        raise UserError(f"{str(file)!r} is not a result file; {remedy}") from None
    if version < SCHEMA_VERSION:
        raise UserError(
            f"{str(file)!r} is of schema version {version}, and this saebench-recovery reads "
            f"{SCHEMA_VERSION} only: run again, or read it with the version that wrote it"
        )
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{str(file)!r} has schema version {version}, newer than {SCHEMA_VERSION}: "
            "upgrade saebench-recovery to read it"
        )
