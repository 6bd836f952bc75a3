"""A leaderboard as Parquet: the lines of its CSV file, with types."""

from __future__ import annotations

from io import BytesIO

from saebench_recovery.results.leaderboard import Leaderboard
from saebench_recovery.results.report.board_csv import flat
from saebench_recovery.results.report.libraries import library


def board_parquet(board: Leaderboard) -> bytes:
    """The content of a file; texts are as they are, and what is not known is null.

    Raises:
        UserError: the extra `report` is not installed.
    """
    file = BytesIO()
    table = library("pyarrow").Table.from_pylist(flat(board))
    library("pyarrow.parquet").write_table(table, file)
    return file.getvalue()
