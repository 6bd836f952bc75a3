"""A run's folder on disk: never a half-written file under its final name, and resumable.

`result.json` is written last and is what counts: examples and perturbations of tasks that it
does not name are left over from a kill and are ignored.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from saebench_recovery.base.errors import UserError
from saebench_recovery.schema import SCHEMA_VERSION, Record, RunResult, Texts

if TYPE_CHECKING:
    from torch import Tensor

RESULT, RECORDS, PERTURBATIONS = "result.json", "records.jsonl", "perturbations.safetensors"
TEXTS = "texts.jsonl"


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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too must survive a power cut
    finally:
        os.close(folder)


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
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}") from None


def read_result(path: Path) -> RunResult:
    """Read a `result.json`, given its path or its folder.

    Raises:
        UserError: there is none, it is no result, or a newer version wrote it.
    """
    file = path / RESULT if path.is_dir() else path
    try:
        content = json.loads(file.read_bytes())
        version = content["schema_version"]
    except FileNotFoundError:
        raise UserError(f"no run at {str(path)!r}: {str(file)!r} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{str(file)!r} is not a result file; delete it to run again") from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{str(file)!r} has schema version {version}, newer than {SCHEMA_VERSION}: "
            "upgrade saebench-recovery to read it"
        )
    try:
        return RunResult.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"{str(file)!r} does not follow schema version {version} at {where}: "
            f"{problem['msg']}; delete it to run again"
        ) from None


class RunFolder:
    """`<out>/<identity>/`: the result, one line per example, and the perturbations."""

    def __init__(self, out: Path, identity: str) -> None:
        self.path = out / identity
        self.result = self.path / RESULT
        self.texts = self.path / TEXTS

    def load(self) -> RunResult | None:
        """What an earlier run left, complete or partial.

        Raises:
            UserError: it cannot be read, see `read_result`.
        """
        return read_result(self.path) if self.result.exists() else None

    def discard(self) -> None:
        """Forget an earlier result, before its other files are written over."""
        self.result.unlink(missing_ok=True)
        self.texts.unlink(missing_ok=True)

    def save(
        self,
        result: RunResult,
        examples: Sequence[Record],
        perturbations: Mapping[str, Tensor],
        texts: Sequence[Texts] | None = None,
    ) -> None:
        """Write everything; perturbations are named `<task>/<tensor>`, and texts are optional.

        Raises:
            UserError: the disk is full, or the folder has become unwritable.
        """
        from safetensors.torch import save

        lines, said = (
            "".join(record.model_dump_json() + "\n" for record in records)
            for records in (examples, texts or ())
        )
        tensors = {n: t.detach().cpu().contiguous() for n, t in perturbations.items()}
        try:
            write_atomically(self.path / RECORDS, lines.encode())
            if texts is not None:
                write_atomically(self.texts, said.encode())
            write_atomically(self.path / PERTURBATIONS, save(tensors))
            write_atomically(self.result, (result.model_dump_json(indent=1) + "\n").encode())
        except OSError as error:
            raise UserError(f"cannot write to {str(self.path)!r}: {error.strerror}") from None

    def finished(self, tasks: Collection[str]) -> tuple[list[Record], dict[str, Tensor]]:
        """Examples and perturbations of the tasks that `result.json` names.

        Raises:
            UserError: a file is missing or broken.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            examples = read_records(self.path)
            perturbations = load((self.path / PERTURBATIONS).read_bytes())
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot continue {str(self.path)!r}: {error}; use --force") from None
        return (
            [example for example in examples if example.task in tasks],
            {
                name: values
                for name, values in perturbations.items()
                if any(name.startswith(f"{task}/") for task in tasks)  # which may have a "/" itself
            },
        )

    def finished_texts(self, tasks: Collection[str]) -> list[Texts]:
        """Texts of the tasks that `result.json` names.

        Raises:
            UserError: none were kept, or the file is broken.
        """
        try:
            lines = self.texts.read_bytes().splitlines()
            return [t for t in map(Texts.model_validate_json, lines) if t.task in tasks]
        except (OSError, ValidationError):
            raise UserError(
                f"{str(self.path)!r} has no texts of what is done already; to keep them, repeat "
                "the run with --force"
            ) from None


def read_records(folder: Path) -> list[Record]:
    """Every line of a run's `records.jsonl`.

    Raises:
        UserError: the file is missing or broken.
    """
    file = folder / RECORDS
    try:
        return [Record.model_validate_json(line) for line in file.read_bytes().splitlines()]
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r}: {error.strerror}") from None
    except ValidationError:
        raise UserError(f"{str(file)!r} is broken; repeat the run with --force") from None
