"""Single figures read off a row, for tables and rankings."""

from __future__ import annotations

from saebench_recovery.schema import Row


def worst_drift(row: Row) -> tuple[float, str] | None:
    """The largest relative drift of any example, and the scope in which it was seen."""
    seen = [(drift.relative_l2.max, scope) for scope, drift in sorted(row.drift.items())]
    return max(((value, scope) for value, scope in seen if value is not None), default=None)
