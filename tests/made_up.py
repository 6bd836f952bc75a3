"""Runs that are made up for a test of what comes after reading."""

from __future__ import annotations

import pytest

from saebench_recovery.results import consistency


@pytest.fixture
def made_up_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of made-up rows need not follow from their records; `test_verify.py` holds that."""
    monkeypatch.setattr(consistency, "mismatches", lambda result, stored: ())
