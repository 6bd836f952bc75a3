"""A hub on this machine, and the clients of this process turned to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers.utils.hub
from huggingface_hub import constants

from saebench_recovery.targets.presets import presets
from tests.hub_server import Hub
from tests.layouts import write_gpt2_saes, write_model

MODEL = "openai-community/gpt2"
SAES = "jbloom/GPT2-Small-SAEs-Reformatted"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("served")
    return write_model(root / "model"), write_gpt2_saes(root / "saes")


@pytest.fixture
def hub(served: tuple[Path, Path]) -> Iterator[Hub]:
    """A hub with tiny stand-ins for what the target `gpt2-small` is made of."""
    hub = Hub()
    hub.add(MODEL, served[0], str(presets()["gpt2-small"].revision))
    hub.add(SAES, served[1], "a" * 40)
    with hub.running():
        yield hub


@pytest.fixture
def clients(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients of this process use that hub and an empty cache."""
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # it keeps the endpoint
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between retries
    monkeypatch.delenv("HF_TOKEN", raising=False)
