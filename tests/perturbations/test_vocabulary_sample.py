"""Where part of a vocabulary puts candidates in order, the best of them are scored by all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saebench_recovery.model.adaptive_batches import AdaptiveBatches
from saebench_recovery.model.vocabulary_sample import SHARE, VocabularySample
from saebench_recovery.perturbations import replacements
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.replacements import (
    FINALISTS,
    evaluated,
    proposed,
    worthwhile,
)
from tests.perturbations.test_suffix import posed, random_ids
from tests.problems import LENGTH

VOCABULARY = 20_000
EACH = -(-4 * FINALISTS // LENGTH)  # candidates that change first in one place


@pytest.mark.parametrize("sure", [0.1, 1.0, 6.0], ids=["random", "between", "trained"])
def test_a_sixteenth_tells_nearly_the_whole_sum(sure: float) -> None:
    """Also of states near those that it was drawn for, by a hundredth of what they differ by."""
    drawn = torch.Generator().manual_seed(0)
    at_V = sure * torch.randn(VOCABULARY, generator=drawn)
    near_NV = at_V + 0.3 * sure * torch.randn(50, VOCABULARY, generator=drawn)
    sample = VocabularySample.of(at_V)
    assert len(sample.ids_K) == len(set(sample.ids_K.tolist())) == VOCABULARY // SHARE
    about_N = (near_NV[:, sample.ids_K] + sample.log_count_K).logsumexp(1)
    error_N = about_N - near_NV.logsumexp(1)
    # What is the same for all puts none of them before another.
    assert float((error_N - error_N.mean()).abs().max()) < 0.1 * sure


def test_a_sample_of_everything_is_everything() -> None:
    logits_V = torch.randn(40, generator=torch.Generator().manual_seed(0))
    size = len(logits_V) // 2
    order_V = logits_V.argsort(descending=True)
    whole = VocabularySample(order_V, torch.zeros(2 * size))
    about = (logits_V[whole.ids_K] + whole.log_count_K).logsumexp(0)
    torch.testing.assert_close(about, logits_V.logsumexp(0))


def candidates(problem: Problem) -> tuple[Tensor, Tensor]:
    """Suffixes [N, L] to go on from, and what they may become [N, L, EACH, L]."""
    base_NL = random_ids(problem.size, LENGTH)
    ids_NLBL = base_NL[:, None, None].repeat(1, LENGTH, EACH, 1)
    for first in range(LENGTH):
        drawn = random_ids(problem.size, EACH, LENGTH - first, seed=first + 1)
        ids_NLBL[:, first, :, first:] = drawn
    return base_NL, ids_NLBL


def values(problem: Problem, tried_NLB: Tensor | None = None, rows: int = 40) -> Tensor:
    base_NL, ids_NLBL = candidates(problem)
    _, _, recorded = proposed(problem, base_NL, 4)
    if tried_NLB is None:
        tried_NLB = torch.ones(ids_NLBL.shape[:3], dtype=torch.bool)
    batches = AdaptiveBatches(rows, rows)
    return evaluated(problem, base_NL, ids_NLBL, tried_NLB, recorded, batches).flatten(1)


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as worth while, as it seldom is for a vocabulary of a hundred."""
    monkeypatch.setattr(replacements, "worthwhile", lambda engine, length, count: True)


def test_the_finalists_are_scored_exactly_and_the_best_is_among_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = posed("gpt2", "several tokens")
    exact_NT = values(problem)
    assert exact_NT.isfinite().all()
    monkeypatch.setattr(replacements, "worthwhile", lambda engine, length, count: True)
    found_NT = values(problem)
    finite_NT = found_NT.isfinite()
    assert (finite_NT.sum(1) == FINALISTS).all()
    torch.testing.assert_close(found_NT[finite_NT], exact_NT[finite_NT], atol=1e-5, rtol=1e-5)
    # Of a vocabulary of a hundred a sixteenth says little, and yet the best is seldom left out.
    place_N = (exact_NT > found_NT.amax(1, keepdim=True) + 1e-5).sum(1)
    assert float(place_N.float().median()) == 0


@pytest.mark.usefixtures("sampling")
def test_a_flip_has_its_own_finalists_whatever_else_is_in_the_batch() -> None:
    problem = posed("gpt2", "several tokens")
    together = values(problem)
    torch.testing.assert_close(values(problem, rows=3), together, atol=1e-5, rtol=1e-5)
    base_NL, ids_NLBL = candidates(problem)
    for n in range(problem.size):
        alone = problem.rows(torch.tensor([n]))
        _, _, recorded = proposed(alone, base_NL[n : n + 1], 4)
        every = torch.ones(1, *ids_NLBL.shape[1:3], dtype=torch.bool)
        own = (base_NL[n : n + 1], ids_NLBL[n : n + 1], every)
        found_NLB = evaluated(alone, *own, recorded, AdaptiveBatches(40, 40))
        torch.testing.assert_close(found_NLB.flatten(), together[n], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("sampling")
def test_what_is_not_tried_is_no_finalist() -> None:
    problem = posed("gpt2", "several tokens")
    tried_NLB = torch.zeros(problem.size, LENGTH, EACH, dtype=torch.bool)
    tried_NLB[:, 1, :3] = True
    found_NT = values(problem, tried_NLB)
    assert torch.equal(found_NT.isfinite(), tried_NLB.flatten(1))


@pytest.mark.usefixtures("sampling")
def test_answers_of_one_token_may_be_all_that_is_left() -> None:
    """Beside longer ones they are laid out for these, which may be done first."""
    laid = posed("gpt2", "several tokens")
    short = [e.with_candidates((11,), (21,), (31,)) for e in laid.examples]
    engine = laid._engine
    nothing_RQ = torch.full_like(engine.batch.ids_RQ, -1)
    batch = replace(engine.batch, examples=tuple(short), forced_RQ=nothing_RQ)
    problem = laid.with_engine(lambda e: replace(e, batch=batch))
    assert (values(problem).isfinite().sum(1) == FINALISTS).all()


def test_it_is_worth_while_where_a_vocabulary_is_large_for_the_model() -> None:
    """And many candidates stand behind the finalists, which run twice."""
    summing, reading = (posed("gpt2", shape)._engine for shape in ("several tokens", "next token"))
    assert not worthwhile(summing, LENGTH, FINALISTS)
    found = [worthwhile(summing, LENGTH, count) for count in (2 * FINALISTS, 10**6)]
    assert found == [False, True]
    assert not worthwhile(reading, LENGTH, 10**6)  # no sum over the vocabulary
    wanted_NV = torch.zeros(summing.size, 100)
    assert not worthwhile(replace(summing, wanted_NV=wanted_NV), LENGTH, 10**6)  # all of it
