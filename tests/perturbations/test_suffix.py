"""A suffix in the window is a suffix in the whole prompt, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, SoftSuffix, TokenSuffix
from saebench_recovery.model.adaptive_batches import AdaptiveBatches
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.perturbations.kinds import pose
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.replacements import evaluated, proposed
from saebench_recovery.perturbations.space import Posing
from saebench_recovery.perturbations.suffix import EMBEDDED, SuffixLayout
from saebench_recovery.perturbations.suffix_embeddings import SuffixEmbeddings
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens, with_tokens
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.spec import Limits
from tests.problems import LENGTH, Still
from tests.tiny import ARCHITECTURES, SITES, TinyTask, shared_target

BEHIND = 2  # tokens of a prompt that follow the suffix, where it does not stand at the end
NEAR: Mapping[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
SHAPES = ("next token", "several tokens", "in the prompt", "pooled")
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
# Each architecture, with the shapes spread over them.
several = pytest.mark.parametrize(
    ("architecture", "shape"),
    [(a, SHAPES[(i + j) % 4]) for j in range(2) for i, a in enumerate(ARCHITECTURES)],
)


class Inside(TinyTask):
    def insertion(self, example: Example) -> int:
        return len(example.prompt) - BEHIND


class Pooled(TinyTask):
    """Its margin is the first residual coordinate less the second, averaged over the text."""

    pool = Site.parse(SITES[1])

    def margins(self, output: object) -> Tensor:
        pooled_ED: Tensor = output.pooled_ED  # type: ignore[attr-defined]
        return pooled_ED[:, :2] - pooled_ED[:, 1:3]


class Answers(TinyTask):
    candidates = ((11, 12, 13), (21,), (31, 32))


TASKS = {
    "next token": TinyTask(),
    "several tokens": Answers(),
    "in the prompt": Inside(),
    "pooled": Pooled(),
}


def posed(
    architecture: str,
    shape: str = "next token",
    kind: Literal["tokens", "embeddings"] = "tokens",
    count: int = 4,
) -> Problem:
    """Two neighbouring rows of each prompt, with other candidates, under a clamp."""
    target, task = shared_target(architecture), TASKS[shape]
    clamp = Clamp(Clamp.Config(latents=8))
    clamp.fit(target, TinyTask())
    examples = list(task.examples(target, "evaluation"))[:count]
    groups = [[e, e.with_candidates(*reversed(e.candidates))] for e in examples]
    return pose(kind, Still(kind), posing(DefendedModel(target, clamp), task, groups))


def posing(active: DefendedModel, task: TinyTask, groups: list[list[Example]]) -> Posing:
    E, V = len(groups), len(groups[0])
    rule = DriftRule(Limits(), dict.fromkeys(map(Site.parse, SITES), 1.0))
    return Posing(
        active, task, groups, torch.ones(E, V), "relative", {}, torch.ones(E), 0, Meter(), rule
    )


def layout_of(problem: Problem) -> SuffixLayout:
    space = problem.space
    assert isinstance(space, SuffixTokens | SuffixEmbeddings)
    assert space.layout is not None
    return space.layout


def suffix_of(problem: Problem, ids_NL: Tensor) -> TokenSuffix:
    return SuffixTokens.of(problem).suffix(ids_NL)


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(3, 90, shape, generator=drawn)


def from_tokens(problem: Problem, suffix: TokenSuffix | SoftSuffix) -> Tensor:
    """Objective [N] in a pass over the whole prompts."""
    examples, delta = suffix.applied(problem.examples)
    active, task = problem._engine.active, problem._engine.task
    return task.objective(whole_pass(active, task, active.target.batch(examples), delta))


@several
def test_the_windows_objective_is_that_of_the_whole_prompt(architecture: str, shape: str) -> None:
    problem = posed(architecture, shape)
    suffix = suffix_of(problem, random_ids(problem.size, LENGTH))
    torch.testing.assert_close(problem.objective(suffix), from_tokens(problem, suffix), **NEAR)
    problem = posed(architecture, shape, "embeddings")
    soft = displaced(problem)
    torch.testing.assert_close(problem.objective(soft), from_tokens(problem, soft), **NEAR)


@several
def test_candidates_that_share_a_beginning_are_whole_candidates(
    architecture: str, shape: str
) -> None:
    problem = posed(architecture, shape)
    base_NL = random_ids(problem.size, LENGTH)
    objective_N, _, recorded = proposed(problem, base_NL, 4)
    expected_N = from_tokens(problem, suffix_of(problem, base_NL))
    torch.testing.assert_close(objective_N, expected_N, **NEAR)
    for each, rows in ((1, 40), (3, 4)):
        ids_NLBL = base_NL[:, None, None].repeat(1, LENGTH, each, 1)
        for first in range(LENGTH):
            drawn = random_ids(problem.size, each, LENGTH - first, seed=first)
            ids_NLBL[:, first, :, first:] = drawn
        every = torch.ones(ids_NLBL.shape[:3], dtype=torch.bool)
        batches = AdaptiveBatches(rows, rows)
        found_NLB = evaluated(problem, base_NL, ids_NLBL, every, recorded, batches)
        wanted = [
            from_tokens(problem, suffix_of(problem, ids_NL))
            for ids_NL in ids_NLBL.flatten(1, 2).unbind(1)
        ]
        torch.testing.assert_close(found_NLB.flatten(1), torch.stack(wanted, 1), **NEAR)


def test_candidates_run_no_token_that_they_begin_alike_with() -> None:
    """A pair of those that change first in the first and in the last token, and so on."""
    problem, each = posed("gpt2"), 2
    base_NL = random_ids(problem.size, LENGTH)
    _, _, recorded = proposed(problem, base_NL, 4)
    ids_NLBL = base_NL[:, None, None].repeat(1, LENGTH, each, 1)
    meter = Meter()
    with meter.counting():
        every = torch.ones(ids_NLBL.shape[:3], dtype=torch.bool)
        evaluated(problem, base_NL, ids_NLBL, every, recorded, AdaptiveBatches(40, 40))
    engine = problem._engine
    N, Q, layers = problem.size, engine.batch.ids_RQ.shape[1], engine.active.target.depth()
    run = sum(Q - first for first in range(LENGTH))
    assert meter.token_layers == N * each * run * layers


def test_a_pass_that_nobody_watches_leaves_out_the_end_of_answers() -> None:
    """In rows of their own; a packed row has no end of an answer but the first one's."""
    engine = posed("gpt2", "several tokens")._engine
    engine = replace(engine, batch=replace(engine.batch, apart=True))
    unwatched, watched = Meter(), Meter()
    with unwatched.counting():
        objective_N = engine.objective(None)
    with watched.counting():
        all_N = engine.objective(None, Trace())
    torch.testing.assert_close(objective_N, all_N, **NEAR)
    Q = engine.batch.ids_RQ.shape[1]
    assert watched.token_layers * (Q - 1) == unwatched.token_layers * Q


def displaced(problem: Problem, size: float = 0.5) -> SoftSuffix:
    drawn = torch.Generator().manual_seed(1)
    bare = problem.zeros()
    assert isinstance(bare, SoftSuffix)
    values = {s: size * torch.randn(v.shape, generator=drawn) for s, v in bare.values.items()}
    return replace(bare, values=values)


@pytest.mark.parametrize("drift_penalty", [0.0, 2.0])
@every_shape
def test_soft_gradients_are_finite_differences(shape: str, drift_penalty: float) -> None:
    problem = SuffixEmbeddings.penalised(posed("gpt2", shape, "embeddings"), drift_penalty, 100.0)
    soft = displaced(problem)
    _, grads = problem.gradient(soft)
    (value,), (grad,) = soft.values.values(), grads.values()
    size_N = grad.flatten(1).norm(dim=1)
    step = 0.01 * grad / size_N[:, None, None]
    ahead, behind = (
        problem.objective(replace(soft, values={EMBEDDED: value + sign * step})) for sign in (1, -1)
    )
    close_N = torch.isclose((ahead - behind) / 0.02, size_N, rtol=0.05)
    assert (size_N > 0).all()
    assert close_N.float().mean() > 0.6  # for some rows a latent switches on or off in between


@every_architecture
def test_one_hot_gradients_rank_tokens_as_the_embedding_does(architecture: str) -> None:
    """The best first-order token has the largest product of its embedding with the gradient."""
    problem = posed(architecture)
    base_NL = random_ids(problem.size, LENGTH)
    _, best_NLK, _ = proposed(problem, base_NL, 3)
    holding = problem.with_engine(lambda engine: with_tokens(engine, base_NL))
    zeros = SuffixTokens.of(problem).zeros()
    leaf_NLD = zeros.values[EMBEDDED].requires_grad_()
    (grad_NLD,) = torch.autograd.grad(holding._engine.objective(zeros).sum(), leaf_NLD)
    score_NLV = grad_NLD @ problem._engine.active.target.embedding.weight.T
    allowed = SuffixTokens.of(problem).words.allowed_V
    expected = score_NLV.masked_fill(~allowed, -torch.inf).topk(3).indices
    assert torch.equal(best_NLK, expected)
    assert allowed[best_NLK].all()


def test_rows_and_pieces_change_nothing() -> None:
    problem = posed("llama")
    suffix = suffix_of(problem, random_ids(problem.size, LENGTH))
    index = torch.tensor([5, 0, 2])
    part = problem.rows(index)
    torch.testing.assert_close(
        part.objective(suffix.rows(index)), problem.objective(suffix)[index], **NEAR
    )
    assert part.examples == tuple(problem.examples[i] for i in index.tolist())


def test_the_empty_suffix_is_the_prompt_itself() -> None:
    problem = posed("gpt2")
    nothing = problem.nothing()
    assert isinstance(nothing, TokenSuffix)
    assert nothing.applied(problem.examples)[0] == list(problem.examples)
    torch.testing.assert_close(problem.objective(nothing), from_tokens(problem, nothing), **NEAR)


def test_random_suffixes_do_not_depend_on_the_batch() -> None:
    problem = posed("gpt2")
    whole = problem.random("control")
    part = problem.rows(torch.tensor([2, 4])).random("control")
    assert isinstance(whole, TokenSuffix)
    assert isinstance(part, TokenSuffix)
    assert part.texts == (whole.texts[2], whole.texts[4])
    assert SuffixTokens.of(problem).words.allowed_V[whole.ids_EL].all()


def test_suffixes_come_back_from_their_tensors() -> None:
    problem = posed("gpt2")
    suffix = suffix_of(problem, random_ids(problem.size, LENGTH))
    again = TokenSuffix.from_tensors(suffix.tensors())
    assert again.texts == suffix.texts
    assert again.applied(problem.examples) == suffix.applied(problem.examples)
    problem = posed("gpt2", kind="embeddings")
    soft = displaced(problem)
    returned = SoftSuffix.from_tensors(soft.tensors())
    torch.testing.assert_close(from_tokens(problem, returned), from_tokens(problem, soft))


def test_a_context_too_short_for_the_suffix_is_one_clear_line() -> None:
    class Long(TinyTask):
        def examples(self, target: object, split: object) -> Sequence[Example]:
            return [Example("long", (1, *[5] * 60), ((11,), (21,)))]

    target = shared_target("gpt2")
    clamp = Clamp(Clamp.Config(latents=8))
    clamp.fit(target, TinyTask())
    (example,) = Long().examples(target, "evaluation")
    asked = posing(DefendedModel(target, clamp), Long(), [[example]])
    with pytest.raises(UserError, match=r"suffix of 4 tokens does not fit.*-A length") as caught:
        pose("tokens", Still("tokens"), asked)
    assert "\n" not in str(caught.value)


def test_batches_shrink_when_memory_runs_out_and_grow_again() -> None:
    batches, seen, fits = AdaptiveBatches(8, 64), list[int](), 3

    def work(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        if len(rows) > fits:
            raise torch.OutOfMemoryError
        return rows

    assert batches.over(40, 1, work).tolist() == list(range(40))
    assert seen[:3] == [8, 4, 2]
    fits = 100
    batches.over(1600, 1, work)
    assert batches.rows == 64
    fits = 0
    with pytest.raises(UserError, match="does not fit"):
        batches.over(4, 1, work)
