"""What memory a role's work took: its own peak, over all accelerators."""

from __future__ import annotations

import pytest
import torch

from saebench_recovery.model.meter import Meter

Patch = pytest.MonkeyPatch


class Accelerators:
    """Two accelerators' books: bytes in use, and the most since the last reset."""

    def __init__(self, patch: Patch) -> None:
        self.used, self.most = [100, 10], [5000, 50]
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.most[device])
        patch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    def _reset(self, device: int) -> None:
        self.most[device] = self.used[device]

    def use(self, device: int, size: int) -> None:
        """Take and give back."""
        self.most[device] = max(self.most[device], self.used[device] + size)


def test_each_role_has_its_own_peak_over_all_accelerators(monkeypatch: Patch) -> None:
    there = Accelerators(monkeypatch)
    attacking, scoring = Meter(), Meter()
    with attacking.counting():
        there.use(0, 7)
        there.use(1, 30)
    with scoring.counting():
        there.use(0, 1)
    with attacking.counting():
        there.use(0, 2)
    assert attacking.cost().peak_bytes == 107 + 40
    assert scoring.cost().peak_bytes == 101 + 10


def test_there_is_no_peak_on_the_cpu() -> None:
    meter = Meter()
    with meter.counting():
        torch.ones(1000)
    assert meter.cost().peak_bytes is None
