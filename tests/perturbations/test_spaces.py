"""What holds in every space of perturbations, on random models and on the embedded one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saebench_recovery.interfaces import (
    Beginning,
    Perturbation,
    ResidualDelta,
    SoftSuffix,
    TokenSuffix,
)
from saebench_recovery.perturbations.kinds import KINDS
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.scoring.setting import Setting
from tests.problems import LENGTH, PUT_IN, on_prompts, organism_setting, problem_of, tiny_setting

FLIPS = 3
NEAR: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
PLACES: dict[str, Callable[[str], Setting]] = {
    "gpt2": tiny_setting,
    "gemma3": lambda kind: tiny_setting(kind, "gemma3"),
    "organism": organism_setting,
}
WITH_NORM = [kind for kind, (space, _) in KINDS.items() if space.has_norm]
everywhere = pytest.mark.parametrize("place", PLACES)
every_kind = pytest.mark.parametrize("kind", KINDS)
with_norm = pytest.mark.parametrize("kind", WITH_NORM)


@cache
def setting(kind: str, place: str = "gpt2") -> Setting:
    return PLACES[place](kind)


@cache
def problem(kind: str, place: str = "gpt2") -> Problem:
    return problem_of(setting(kind, place), FLIPS)


def drawn(problem: Problem, times: float = 0.5) -> Perturbation:
    """A random perturbation of so many times the budget, if it has a norm."""
    return lengthened(problem.random("test"), times)


def lengthened(perturbation: Perturbation, times: float) -> Perturbation:
    if not isinstance(perturbation, ResidualDelta):
        return perturbation
    values = {site: times * value for site, value in perturbation.values.items()}
    return replace(perturbation, values=values)


def assert_same(one: Perturbation, other: Perturbation, **near: Any) -> None:
    assert type(one) is type(other)
    found, wanted = one.tensors(), other.tensors()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        if tensor.is_floating_point() and near:
            torch.testing.assert_close(tensor, wanted[name], **near)
        else:
            assert torch.equal(tensor, wanted[name]), name


def refused(problem: Problem, perturbation: Perturbation) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        problem.admit(perturbation)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@everywhere
@every_kind
def test_nothing_changes_nothing(kind: str, place: str) -> None:
    posed = problem(kind, place)
    defended_N = on_prompts(setting(kind, place), posed.examples)
    torch.testing.assert_close(posed.objective(posed.nothing()), defended_N, **NEAR)
    behaviour_EV = posed.behaviour(posed.nothing()).view(-1, posed.variants)
    assert not behaviour_EV[:, : posed.variants // 2].any()  # flips, towards the right answer
    present_E = posed.nothing().present_E()
    assert (present_E is None) == (kind == "residual")
    assert present_E is None or not present_E.any()


@everywhere
@every_kind
def test_admitting_clips_to_the_budget_and_is_idempotent(kind: str, place: str) -> None:
    posed = problem(kind, place)
    once = posed.admit(drawn(posed, times=3.0))
    assert_same(posed.admit(once), once)
    norm_N = posed.norm(once)
    assert (norm_N is not None) == posed.space.has_norm
    if norm_N is not None:
        torch.testing.assert_close(norm_N, posed.budget_N, rtol=1e-4, atol=1e-6)
    short = drawn(posed, times=0.25)
    assert_same(posed.admit(short), short)


@pytest.mark.parametrize("other", KINDS)
@every_kind
def test_another_kind_is_refused(kind: str, other: str) -> None:
    if kind != other:
        refused(problem(kind), drawn(problem(other)))


@with_norm
def test_a_delta_that_does_not_fit_is_refused(kind: str) -> None:
    posed = problem(kind)
    delta = drawn(posed)
    assert isinstance(delta, ResidualDelta)

    def with_values(change: Callable[[Tensor], Tensor]) -> ResidualDelta:
        return replace(delta, values={s: change(v) for s, v in delta.values.items()})

    refused(posed, replace(delta, positions_EP=delta.positions_EP + 1))
    refused(posed, delta.rows(torch.arange(1)))
    refused(posed, with_values(lambda v: v[:, :, :1]))
    refused(posed, with_values(lambda v: v.masked_fill(v > 0, torch.nan)))
    refused(posed, with_values(lambda v: v.masked_fill(v > 0, torch.inf)))
    elsewhere = {replace(s, layer=s.layer + 1): v for s, v in delta.values.items()}
    refused(posed, replace(delta, values=elsewhere))


def test_tokens_that_do_not_fit_are_refused_or_are_no_suffix() -> None:
    posed = problem("tokens")
    suffix = drawn(posed)
    assert isinstance(suffix, TokenSuffix)
    refused(posed, replace(suffix, at_E=suffix.at_E - 1))
    refused(posed, suffix.rows(torch.arange(1)))
    long = posed.admit(replace(suffix, texts=("x" * (LENGTH + 1),) * posed.size))
    present_N = long.present_E()
    assert present_N is not None
    assert not present_N.any()


def test_beginnings_that_do_not_fit_are_refused() -> None:
    posed = problem("beginning")
    beginning = drawn(posed)
    assert isinstance(beginning, Beginning)
    refused(posed, replace(beginning, at_E=beginning.at_E - 1))
    refused(posed, beginning.rows(torch.arange(1)))
    refused(posed, replace(beginning, ids_EL=beginning.ids_EL.repeat(1, 2)))
    tokenizer = setting("beginning").target.tokenizer
    for token in (tokenizer.eos_token_id, len(tokenizer)):
        refused(posed, replace(beginning, ids_EL=torch.full_like(beginning.ids_EL, token)))


def displacement(posed: Problem, delta: ResidualDelta) -> float:
    """The most that a constrained delta moves along an encoder direction, relative to both."""
    (values_NPD,) = delta.values.values()
    defense = posed._engine.active.defense
    assert defense is not None
    (latents,) = defense.latents.values()
    columns_DS = latents.columns_DS.double()
    along = (values_NPD.double() @ (columns_DS / columns_DS.norm(dim=0))).abs()
    return float((along / values_NPD.norm(dim=-1, keepdim=True).clamp_min(1e-30)).max())


def allowed(posed: Problem, delta: Perturbation) -> None:
    assert isinstance(delta, ResidualDelta)
    norm_N = posed.norm(delta)
    assert norm_N is not None
    assert (norm_N <= posed.budget_N * (1 + 1e-5)).all()
    if type(posed.space) is Residual:
        assert displacement(posed, delta) < 1e-5


@everywhere
@with_norm
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.floats(-4, 4))
def test_projecting_keeps_to_the_null_space_and_to_the_ball(
    kind: str, place: str, seed: int, exponent: float
) -> None:
    posed = problem(kind, place)
    zeros, random = posed.zeros(), torch.Generator().manual_seed(seed)
    wild = {
        s: 10**exponent * torch.randn(v.shape, generator=random) for s, v in zeros.values.items()
    }
    delta = replace(zeros, values=posed.project(wild))
    allowed(posed, delta)
    again = replace(zeros, values=posed.project(delta.values))
    assert_same(again, delta, rtol=1e-4, atol=1e-5 * float(delta.norm_E().max()))
    if type(posed.space) is Residual and exponent > 0:
        assert displacement(posed, replace(zeros, values=wild)) > 1e-3  # it had to


@everywhere
@every_kind
def test_shrinking_halves_the_norm_and_stays_allowed(kind: str, place: str) -> None:
    posed = problem(kind, place)
    whole = posed.admit(drawn(posed, times=1.0))
    half = posed.space.shrink(whole, torch.full_like(posed.budget_N, 0.5))
    if kind not in WITH_NORM:
        assert half is None
        return
    assert half is not None
    norm_N, half_N = (posed.norm(p) for p in (whole, half))
    assert norm_N is not None
    torch.testing.assert_close(half_N, norm_N / 2)
    allowed(posed, half)
    assert_same(posed.admit(half), half)


@everywhere
@every_kind
def test_random_ones_have_the_asked_norm_and_do_not_depend_on_the_batch(
    kind: str, place: str
) -> None:
    posed = problem(kind, place)
    given = drawn(posed, times=0.3)
    for like, times in ((None, 1.0), (given, 0.3)):
        whole = posed.random("a label", like)
        if posed.space.has_norm:
            torch.testing.assert_close(posed.norm(whole), times * posed.budget_N)
        index = torch.arange(posed.variants, posed.size)  # all but the first flip
        part = posed.rows(index).random("a label", None if like is None else like.rows(index))
        assert_same(part, whole.rows(index), rtol=1e-5, atol=1e-5)
        assert_same(posed.random("a label", like), whole)
        with pytest.raises(AssertionError):
            assert_same(posed.random("another label", like), whole, rtol=1e-3, atol=1e-3)


@every_kind
def test_some_rows_are_drawn_as_they_are_among_all(kind: str) -> None:
    posed = problem(kind)
    index = torch.tensor([posed.size - 1, 0])
    every, some = posed.random("test"), posed.random("test", of=index)
    for name, tensor in every.rows(index).tensors().items():
        torch.testing.assert_close(some.tensors()[name], tensor)


@every_kind
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_rows_commute_with_everything(kind: str, data: st.DataObject) -> None:
    posed = problem(kind)
    row = st.integers(0, posed.size - 1)
    index = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=5)))
    part, whole = posed.rows(index), drawn(posed, times=2.0)
    assert part.examples == tuple(posed.examples[i] for i in index.tolist())
    assert_same(part.nothing(), posed.nothing().rows(index))
    assert_same(part.admit(whole.rows(index)), posed.admit(whole).rows(index))
    admitted = posed.admit(whole)
    objective_N = part.objective(admitted.rows(index))
    torch.testing.assert_close(objective_N, posed.objective(admitted)[index], **NEAR)
    behaviour_N = part.behaviour(admitted.rows(index))
    assert torch.equal(behaviour_N, posed.behaviour(admitted)[index])
    if isinstance(whole, ResidualDelta):
        projected = posed.project(whole.values)
        for site, value in part.project(whole.rows(index).values).items():
            torch.testing.assert_close(value, projected[site][index])
        factor_N = torch.linspace(0, 1, posed.size)
        shrunk = posed.space.shrink(admitted, factor_N)
        assert shrunk is not None
        some = part.space.shrink(admitted.rows(index), factor_N[index])
        assert some is not None
        assert_same(some, shrunk.rows(index))


@every_kind
def test_what_a_perturbation_puts_in_is_what_its_class_says(kind: str) -> None:
    posed = problem(kind)
    perturbation = posed.admit(drawn(posed))
    assert perturbation.kind == posed.space.kind == kind
    examples, delta = perturbation.applied(posed.examples)
    longer = {len(e.prompt) - len(p.prompt) for e, p in zip(examples, posed.examples, strict=True)}
    assert longer == ({LENGTH} if kind in PUT_IN else {0})
    assert (delta is not None) == isinstance(perturbation, ResidualDelta)
    assert isinstance(perturbation, SoftSuffix) == (kind == "embeddings")
