"""Products by oneDNN give what PyTorch's own give, are counted as much, and can be left out."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from saebench_recovery.model import products
from saebench_recovery.model.products import WORTHWHILE, linear, own_products, widen

needs_onednn = pytest.mark.skipif(
    not products.available, reason="this CPU's products are PyTorch's own"
)
IN, OUT = 64, 128
MANY = WORTHWHILE // (IN * OUT)  # rows


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def slopes(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of what is not linear in a product, and that gradient's own."""
    (first,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return first, second


@pytest.mark.parametrize("rows", [1, MANY])
@pytest.mark.parametrize("inputs_first", [False, True])
def test_values_and_both_gradients_are_those_of_pytorch(rows: int, *, inputs_first: bool) -> None:
    weight = drawn(IN, OUT).T if inputs_first else drawn(OUT, IN)
    weight, bias = weight / IN**0.5, drawn(OUT)
    x = drawn(2, rows, IN).requires_grad_()
    ours, theirs = linear(x, weight, bias), nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(slopes(ours, x), slopes(theirs, x))
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), theirs)


def test_a_weight_that_is_trained_gets_its_gradient() -> None:
    weight = drawn(OUT, IN).requires_grad_()
    (grad,) = torch.autograd.grad(linear(drawn(MANY, IN), weight, None).sum(), weight)
    torch.testing.assert_close(grad, drawn(MANY, IN).sum(0).expand(OUT, -1), rtol=1e-4, atol=1e-4)


def test_a_bias_that_is_trained_gets_its_gradient() -> None:
    bias = drawn(OUT).requires_grad_()
    for x in (drawn(MANY, IN), drawn(MANY, IN).requires_grad_()):
        (grad,) = torch.autograd.grad(linear(x, drawn(OUT, IN), bias).sum(), bias)
        torch.testing.assert_close(grad, torch.full((OUT,), float(MANY)))


def test_a_bias_may_be_a_view() -> None:
    x, weight, bias = drawn(MANY, IN), drawn(OUT, IN), drawn(OUT, 2)[:, 0]
    torch.testing.assert_close(linear(x, weight, bias), nn.functional.linear(x, weight, bias))


def test_forward_derivatives_are_kept() -> None:
    weight, x = drawn(OUT, IN), drawn(2, MANY, IN)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x + 1)  # type: ignore[no-untyped-call]
        made = forward_ad.unpack_dual(linear(dual, weight, None))  # type: ignore[no-untyped-call]
        tangent = made.tangent
    torch.testing.assert_close(tangent, nn.functional.linear(x + 1, weight))
    tangent = torch.func.jvp(lambda v: linear(v, weight, None), (x,), (x + 1,))[1]
    torch.testing.assert_close(tangent, nn.functional.linear(x + 1, weight))


@needs_onednn
def test_they_are_counted_as_the_same_product() -> None:
    counts = []
    for product in (linear, nn.functional.linear):
        with FlopCounterMode(display=False) as counter:
            product(drawn(2, MANY, IN), drawn(OUT, IN), drawn(OUT))
        counts.append(counter.get_total_flops())
    assert counts == [2 * 2 * MANY * IN * OUT] * 2


@needs_onednn
def test_a_model_is_widened_and_can_be_run_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(IN, OUT), Conv1D(IN, OUT), nn.Linear(IN, 1))
    last = model[2]
    last.forward = torch.sin  # as a library that shards models puts its own
    widen(model)
    ours = [type(part) for part in model]
    assert ours == [products._Linear, products._Conv1D, nn.Linear]
    assert [type(part) for part in deepcopy(model)] == ours
    with own_products(model):
        assert [type(part) for part in model] == [nn.Linear, Conv1D, nn.Linear]
    assert [type(part) for part in model] == ours
