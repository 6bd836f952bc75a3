"""Leaderboards as files: JSON for each target and task, and a page to read for each target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from saebench_recovery.results.leaderboard import Leaderboard
from saebench_recovery.results.report.markdown import page
from saebench_recovery.results.store import check_writable, write_atomically


def publish(boards: Sequence[Leaderboard], out: Path) -> list[Path]:
    """Write `<target>-<task>.json` for each board, `<target>.md` for each target; their paths.

    Characters that do not belong into a file name, as in the name of a hub model, become "_".

    Raises:
        UserError: the folder cannot be written.
    """
    check_writable(out)
    files = {
        f"{_name(board.target)}-{_name(board.task)}.json": board.model_dump_json() + "\n"
        for board in boards
    }
    for target in dict.fromkeys(board.target for board in boards):
        files[f"{_name(target)}.md"] = page([b for b in boards if b.target == target])
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    return [out / name for name in files]


def _name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
