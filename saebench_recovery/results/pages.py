"""Leaderboards as files: JSON and CSV for each target and task, a page to read for each target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from saebench_recovery.base.file_names import LONGEST, hashed_name, slug
from saebench_recovery.results.leaderboard import Leaderboard
from saebench_recovery.results.report.board_csv import board_csv
from saebench_recovery.results.report.board_parquet import board_parquet
from saebench_recovery.results.report.markdown import page
from saebench_recovery.results.store import check_writable, write_atomically

# Of a target or task. None begins with a dot or looks as if it ended in a hash.
_PLAIN = re.compile(r"(?!(.*-)?[0-9a-f]{12}$)[a-z0-9][a-z0-9._-]*")


def write_boards(boards: Sequence[Leaderboard], out: Path, *, parquet: bool = False) -> list[Path]:
    """Write `<target>-<task>.json` and `.csv` for each board, `<target>.md` for each target.

    With `parquet`, `<target>-<task>.parquet` too. Returns their paths. A name that does not make a
    file's name as it is, such as that of a hub model, becomes a short one with a hash of the whole,
    so that no two names share a file.

    Raises:
        UserError: the folder cannot be written, or Parquet is wanted and pyarrow is not there.
    """
    check_writable(out)
    files: dict[str, str | bytes] = {
        f"{_name(board.target, board.task)}.json": board.model_dump_json() + "\n"
        for board in boards
    }
    for target in dict.fromkeys(board.target for board in boards):
        files[f"{_name(target)}.md"] = page([b for b in boards if b.target == target])
    files |= {f"{_name(board.target, board.task)}.csv": board_csv(board) for board in boards}
    if parquet:
        files |= {f"{_name(b.target, b.task)}.parquet": board_parquet(b) for b in boards}
    for name, content in files.items():
        write_atomically(out / name, content if isinstance(content, bytes) else content.encode())
    return [out / name for name in files]


def _name(*parts: str) -> str:
    plain = slug(parts)
    split_once = all("-" not in part for part in parts[1:])
    if split_once and all(map(_PLAIN.fullmatch, parts)) and len(plain) <= LONGEST:
        return plain
    return hashed_name(parts, parts)
