"""Fixtures for all rooms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.fake_engine import Engine

pytest_plugins = ["tests.hub_fixtures", "tests.made_up"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole", action="store_true", help="faults and bad input in full, not by sample"
    )


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether all cases are wanted of what the suite tries by sample."""
    return bool(request.config.getoption("--whole"))


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
