"""Fixtures for all rooms."""

from __future__ import annotations

import os

import pytest
import torch

from tests.fake_engine import Engine

# Test files run side by side, a process for each core (`-n`), with one thread each: models as small
# as these gain nothing from more. Sums in another order would differ in their last digits, too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start

pytest_plugins = ["tests.hub_fixtures", "tests.made_up"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The fake engine in the place of the real one, with the tasks alpha, beta and gamma."""
    fake = Engine()
    fake.install(monkeypatch.setitem)
    return fake
