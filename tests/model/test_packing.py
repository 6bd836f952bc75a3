"""Answers that are teacher-forced share one packed row, and score as each does in its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example
from saebench_recovery.model.batch import Batch, batch
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import forward, prefill
from saebench_recovery.model.meter import Meter
from tests.model.setting import clamp, prompts, random_delta, relative
from tests.tiny import ARCHITECTURES, BOS, shared_target

SITE = Site(1, "hook_resid_post")


def test_a_packed_row_holds_each_different_token_once() -> None:
    """Of a later answer, what the first ones do not begin with, without its last token."""
    laid = batch([Example("", (BOS, 5), ((6, 7, 8), (6, 9, 4), (3, 3), (6, 7, 8)))])
    assert laid.packing is not None
    packed = laid.packing.packed(laid.ids_RQ)
    assert packed.tolist() == [[BOS, 5, 6, 7, 8, 9, 3]]


def test_rows_are_as_they_were_where_something_is_read() -> None:
    laid = batch(prompts(long_answers=True))
    assert laid.packing is not None
    again = laid.packing.unpacked(laid.packing.packed(laid.ids_RQ))
    known = laid.packing.known_EX.view(laid.ids_RQ.shape)
    assert torch.equal(again[known], laid.ids_RQ[known])
    assert laid.forced_RQ is not None
    assert known[laid.forced_RQ >= 0].all()


def test_what_is_read_stays_where_a_prompt_outlasts_an_other_with_its_answers() -> None:
    """Only columns behind both what answers predict and every prompt can be left out."""
    one_token = Example("", (BOS, 5, 6, 7, 8, 9), ((6,), (7,)))
    longer = Example("", (BOS, 5), ((6, 7), (8, 9)))
    laid = batch([one_token, longer]).read()
    assert laid.readout_E.tolist() == [5, 1]
    assert laid.ids_RQ.shape[1] == 6
    assert batch([longer]).read().ids_RQ.tolist() == [[BOS, 5, 6], [BOS, 5, 8]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_packed_tail_has_the_scores_and_gradients_of_rows_apart(architecture: str) -> None:
    target, examples = shared_target(architecture), prompts(long_answers=True)
    active = DefendedModel(target, clamp(target, ["blocks.1.hook_resid_post"]))
    first = [len(example.prompt) - 2 for example in examples]
    delta = random_delta(SITE, [[len(e.prompt) - 2, len(e.prompt) - 1] for e in examples])

    def scored(laid: Batch) -> tuple[Tensor, Tensor, Meter]:
        start = prefill(target, laid.prefix, laid, active.edits, active.edits(laid), SITE)
        leaf = delta.values[SITE].clone().requires_grad_()
        moved, meter = replace(delta, values={SITE: leaf}), Meter()
        with meter.counting():
            scores_EC = forward(target, laid, active.edits(laid, moved), start).scores_EC
        finite_EC = scores_EC[laid.candidate_EC >= 0]
        (grad,) = torch.autograd.grad(finite_EC.square().sum(), leaf)
        return finite_EC.detach(), grad, meter

    laid = target.batch(examples, first)
    (scores, grad, together), (wanted, wanted_grad, apart) = map(
        scored, (laid, replace(laid, apart=True))
    )
    assert relative(scores, wanted) < 1e-5
    assert relative(grad, wanted_grad) < 1e-4
    assert together.token_layers < apart.token_layers
