"""A device without float64 is asked for none, and says what a device with it says."""

from __future__ import annotations

import pytest
import torch

from saebench_recovery.base import precision
from tests.devices import FIRST, KIND, Float64Error, simulated_devices, without_float64
from tests.model.test_sharded import row
from tests.tiny import tiny_model, tiny_target

PAIRS = [
    ("gpt2", "clamp", "orthogonal"),
    ("llama", "trajectory", "jacobian"),
    ("gemma2", "clamp", "minimal"),
    ("qwen2", "ablation", "gcg"),
    ("neox", "mahalanobis-monitor", "random-direction"),
]


@pytest.mark.parametrize(("architecture", "defense", "attack"), PAIRS)
def test_a_run_asks_a_device_without_float64_for_none(
    architecture: str, defense: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts are those of the CPU; figures differ by rounding, which a search magnifies."""
    wanted = row(tiny_target(architecture), defense, attack)
    monkeypatch.setattr(precision, "WITHOUT", (KIND,))
    with simulated_devices(), without_float64():
        model = tiny_model(architecture).to(FIRST)
        found = row(tiny_target(architecture, model=model), defense, attack)
    assert found.examples == wanted.examples
    assert found.recovery.k == wanted.recovery.k
    assert found.constraint == wanted.constraint
    if wanted.detection is not None:
        assert found.detection is not None
        assert found.detection.false_alarms.k == wanted.detection.false_alarms.k


def test_the_simulated_device_refuses_it() -> None:
    with simulated_devices(), without_float64(), pytest.raises(Float64Error, match="lazy:0"):
        torch.ones(2, device=FIRST).double()


def test_by_default_only_mps_is_without() -> None:
    assert precision.finest(torch.device("mps")) == torch.float32
    assert all(precision.has_float64(torch.device(kind)) for kind in ("cpu", "cuda"))
