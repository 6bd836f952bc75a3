"""Fused activation functions give what the model's own give, and the reference has its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saebench_recovery.model.activations import FUSED, as_written, fuse


@pytest.mark.parametrize("kind", FUSED)
def test_fused_and_written_agree_within_rounding(kind: type[nn.Module]) -> None:
    function = kind()
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    own = function(x)
    (own_slope,) = torch.autograd.grad(own.sum(), x)
    fuse(function)
    fused = function(x)
    (fused_slope,) = torch.autograd.grad(fused.sum(), x)
    torch.testing.assert_close(fused, own, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(fused_slope, own_slope, rtol=1e-5, atol=2e-6)


def test_a_model_can_be_run_as_it_was_written() -> None:
    first, second = (next(iter(FUSED))() for _ in range(2))
    second.forward = torch.sin  # as a library that shards models puts its own
    model = nn.Sequential(first, second)
    fuse(model)
    assert "forward" in vars(first)
    with as_written(model):
        assert "forward" not in vars(first)
        assert second.forward is torch.sin
    assert "forward" in vars(first)
    assert second.forward is torch.sin
