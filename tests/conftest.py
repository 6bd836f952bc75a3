"""Fixtures for all rooms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.fake_engine import Engine

pytest_plugins = ["tests.hub_fixtures", "tests.made_up"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The fake engine in the place of the real one, with the tasks alpha, beta and gamma."""
    fake = Engine()
    fake.install(monkeypatch.setitem)
    return fake


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in another order differ in their last digits, and a search carries that further."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
