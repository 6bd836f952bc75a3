"""Fixtures for all rooms."""

from __future__ import annotations

import pytest

from tests.fake_engine import Engine

pytest_plugins = ["tests.hub_fixtures"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The fake engine in the place of the real one, with the tasks alpha, beta and gamma."""
    fake = Engine()
    fake.install(monkeypatch.setitem)
    return fake
