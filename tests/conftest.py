"""Fixtures for all rooms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from saebench_recovery import registry
from saebench_recovery.cli import progress
from tests.fake_engine import Engine

# Test files run side by side, a process for each core (`-n`), with one thread each: models as small
# as these gain nothing from more. Sums in another order would differ in their last digits, too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
os.environ["SAEBENCH_JOBS"] = "1"  # what tests put in the place of parts is of their process alone

# `pytest -m quick`: rooms that run no model, and files elsewhere that hardly run one.
QUICK = ("base", "results", "structure", "test_registry.py", "test_spec.py", "cli/test_messages.py")

progress.EVERY = 600.0  # on a machine under load, lines between those that tests look at

pytest_plugins = ["tests.hub_fixtures", "tests.made_up"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole", action="store_true", help="faults and bad input in full, not by sample"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    quick = tuple(here / name for name in QUICK)
    for item in items:
        inside = any(item.path == place or place in item.path.parents for place in quick)
        if inside and not item.get_closest_marker("whole"):
            item.add_marker("quick")


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether all cases are wanted of what the suite tries by sample."""
    return bool(request.config.getoption("--whole"))


@pytest.fixture(scope="module", autouse=True)
def _without_code_of_others() -> None:
    """Beside code of others, what a test puts in the place of a part of the package is named.

    So the files and classes that other test modules have brought are forgotten here.
    """
    registry._of_others = frozenset()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The fake engine in the place of the real one, with the tasks alpha, beta and gamma."""
    fake = Engine()
    fake.install(monkeypatch.setitem)
    return fake
